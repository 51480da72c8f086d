"""CLIP and VGG guidance: the gradient of a distance between the image so far and a text or an image corrects each step
(reference: controlnet, section 5)."""
