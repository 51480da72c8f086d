"""Files on disk: checkpoints, diffusers folders, LoRA files, metadata, hashes. Torch is imported only when needed."""
