"""Models on the Hugging Face hub and other servers: catalog, downloads, uploads."""
