"""LoRA files: names of their layers and tensors, recognition of their kind, metadata."""
