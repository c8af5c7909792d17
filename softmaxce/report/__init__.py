"""Rows of figures as a person or a program reads them."""
