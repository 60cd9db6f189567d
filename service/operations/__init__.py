"""What the operator sees: metrics, logs, spans, timings."""
