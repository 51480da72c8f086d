"""Sizes, batches, and what each step sees."""
