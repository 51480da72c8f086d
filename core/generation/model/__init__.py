"""Models of a generation: finding files by name, the store of loaded parts, LoRAs, embeddings, ControlNets, upscaling networks."""
