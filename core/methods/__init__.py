"""What learns: one file per way of training."""
