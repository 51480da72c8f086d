"""One engine: a persistent queue, a thread for device jobs, a thread for light ones, and snapshots of runs for the page."""
