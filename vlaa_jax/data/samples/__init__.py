"""A record and its images as what the model reads."""
