"""From a prompt to images: pipeline, LoRAs and embeddings in use, the model kept between jobs, image metadata."""
