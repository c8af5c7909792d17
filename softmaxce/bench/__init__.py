"""Measurements that a reader can repeat: what is compared, on which inputs, how it is timed and what it came to."""
