"""What every family of encoder pairs stands on: model ids, weights files, engines."""
