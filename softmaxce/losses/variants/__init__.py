"""Losses derived from cross-entropy, one per file."""
