"""Batches of static shape: padded prompts, packed rows."""
