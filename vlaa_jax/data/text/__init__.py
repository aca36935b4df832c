"""Text to tokens and their positions, through the checkpoint's own template."""
