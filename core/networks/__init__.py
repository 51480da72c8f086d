"""Networks of adapters (LoRA and its relatives) on frozen weights, their files, and frozen weights in faster or smaller forms."""
