"""Checkpoints and training states, and where a run resumes."""
