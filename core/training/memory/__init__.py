"""What a training takes, and what saves it."""
