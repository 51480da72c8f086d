"""Memory forecast of a training, and advice to lower it."""
