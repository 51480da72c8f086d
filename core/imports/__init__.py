"""Other programs' files in and out: the dataset config of sd-scripts."""
