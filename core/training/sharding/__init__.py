"""One training in several processes' memory: DeepSpeed."""
