"""A prompt, from its line to what is encoded: options, wildcards, LoRAs, weights and windows."""
