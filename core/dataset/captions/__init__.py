"""From caption files to what is trained with."""
