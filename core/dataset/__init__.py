"""From a folder to training images: scan, captions, buckets, images, caches, preflight, batches."""
