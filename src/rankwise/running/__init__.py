"""A user's model, run once on a batch: what it is called with, what it gives, and no trace left in it."""
