"""From a folder to images that train: scan, captions, buckets, images, caches, preflight, batches."""
