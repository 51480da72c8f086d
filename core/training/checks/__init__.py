"""Checks of a job before the training starts."""
