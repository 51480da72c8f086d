"""The training loop: optimizer steps, saves, samples, validation and reports."""
