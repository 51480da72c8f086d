"""Training: from a checked job to a finished file, by a loop that reads like the page's progress."""
