"""From a folder to pictures that train: scan, captions, buckets, images, caches, preflight, batches."""
