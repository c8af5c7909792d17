"""Optimizers and learning-rate schedules of our own, and PyTorch's optimizers without their wrappers."""
