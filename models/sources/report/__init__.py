"""What a set of captioned pictures holds, counted in one pass, and what that means for training."""
