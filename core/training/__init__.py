"""Training: from a checked job to its final checkpoint."""
