"""Losses derived from cross-entropy, one a file."""
