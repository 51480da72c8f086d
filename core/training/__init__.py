"""Training: from a checked job to a finished file, by a loop whose stages are those of the page's progress."""
