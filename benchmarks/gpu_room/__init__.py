"""Model, GRPO step and SFT step on one device, each measured alone."""
