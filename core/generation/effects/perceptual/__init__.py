"""CLIP and VGG guidance: each step is corrected by the gradient of a distance between the current image and a text or guide image.

Reference: controlnet, section 5.
"""
