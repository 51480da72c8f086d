"""Captioners that write sentences with transformers: BLIP, BLIP-2, GIT, Florence-2 and vision-language models."""
