"""Prompts as text: options, wildcards, weights, windows, edits, LoRA tags, styles, and their states. Knows no model file."""
