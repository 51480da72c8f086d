"""From a job to one request per image: its stages, its files, what is wrong, and the memory that it takes."""
