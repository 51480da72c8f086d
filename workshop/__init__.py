"""What makes or measures files of the project, and is no part of it: run by those who work on it."""
