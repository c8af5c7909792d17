"""Compiled inner loops: addresses and numbers, no autograd and no nn.Module."""
