"""Run folders: what is written into them, checked when it is read back, listed and resumed."""
