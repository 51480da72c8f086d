"""Settings of optimizer, learning rates and schedule."""
