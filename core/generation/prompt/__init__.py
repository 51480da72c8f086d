"""Prompt text: options, wildcards, weights, prompt editing, LoRA tags, styles, and the text encoder states of prompts. Opens no model."""
