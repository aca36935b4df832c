"""A scalar head on a Qwen-VL model: one number per sequence, for rewards."""
