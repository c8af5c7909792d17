"""The laws that a cross-entropy-like loss keeps, and the examination of anyone's loss by them."""
