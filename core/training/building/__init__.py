"""Builds a training from a job, up to its first step."""
