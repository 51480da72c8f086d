"""Measures of a run's checkpoints that need only the base model and the dataset: a file for each measure, a row in measures.py."""
