"""The dataset doctor: finds problems of a dataset and fixes them."""
