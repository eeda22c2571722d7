"""Layers of networks: the kinds of dense ones, and the chains of plain layers that replace them."""
