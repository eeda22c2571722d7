"""A user's model, looked at: the layers that can be factorised, what they cost, and what replaces them."""

from . import kinds as kinds  # registers them
