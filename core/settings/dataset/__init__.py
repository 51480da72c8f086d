"""Settings of the training images and their captions."""
