"""The dataset doctor: problems of a dataset, and fixes."""
