"""Checkpoints, training states and resuming."""
