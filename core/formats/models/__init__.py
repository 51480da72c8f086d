"""Full models in single files and diffusers folders: finding their parts, reading, converting, writing."""
