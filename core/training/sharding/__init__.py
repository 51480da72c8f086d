"""Training with DeepSpeed, which partitions the trained weights and optimizer state over processes."""
