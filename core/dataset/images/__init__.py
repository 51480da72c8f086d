"""Image files to pixels: opening, colors, resizing, crops, masks, measurements."""
