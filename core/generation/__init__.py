"""From a prompt to images: pipeline, LoRAs in use, the model kept between jobs, what is written into an image."""
