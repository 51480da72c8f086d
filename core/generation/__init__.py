"""From a prompt to pictures: pipeline, LoRAs in use, the model kept between jobs, what is written into a picture."""
