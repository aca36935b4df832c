"""Checkpoints between Hugging Face and vlaa_jax."""
