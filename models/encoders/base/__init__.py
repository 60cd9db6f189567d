"""What every family of encoder pairs stands on: model ids, the hub, weights files, engines."""
