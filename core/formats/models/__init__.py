"""Full models: finding, reading and writing."""
