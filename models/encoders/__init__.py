"""Model ids, and the pairs behind them: open_clip's architectures, the starter."""
