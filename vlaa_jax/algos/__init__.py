"""Pure mathematics of SFT and GRPO: arrays in, arrays out."""
