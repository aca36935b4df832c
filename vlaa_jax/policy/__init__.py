"""The policy: pretrained weights, its distribution, prompts, sampling, scoring. No trainer."""
