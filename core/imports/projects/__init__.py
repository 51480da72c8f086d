"""Reads the training settings of other programs (sd-scripts, kohya_ss) into jobs, with a report of every key."""
