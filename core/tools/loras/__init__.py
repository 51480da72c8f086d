"""Tools on LoRAs."""
