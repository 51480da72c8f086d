"""What is measured of a run's checkpoints with base model and dataset alone: a file for each measure, a row in measures.py."""
