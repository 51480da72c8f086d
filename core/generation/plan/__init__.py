"""From a job to one request per image: its stages, its files, its problems, and its memory forecast."""
