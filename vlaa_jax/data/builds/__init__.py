"""Builds: records and images in shards that are read at random."""
