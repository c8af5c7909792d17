"""Softmax, one-hot and cross-entropy: the reason for the project."""
