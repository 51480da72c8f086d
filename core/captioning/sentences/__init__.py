"""Captioners that write sentences, by plain transformers: BLIP, BLIP-2, GIT, Florence-2 and vision-language models."""
