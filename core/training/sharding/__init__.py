"""Training with DeepSpeed, which partitions a training over processes."""
