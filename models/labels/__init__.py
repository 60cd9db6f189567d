"""Zero-shot classification: prompts, class matrices, probabilities and their calibration."""
