"""Models of a generation: files found by name, the store, model parts, LoRAs, embeddings, ControlNets, upscalers."""
