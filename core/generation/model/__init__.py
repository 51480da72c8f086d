"""What is lent to a generation: files found by name, the store, parts of models, LoRAs, embeddings, ControlNets, upscalers."""
