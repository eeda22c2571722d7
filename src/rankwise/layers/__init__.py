"""Layers of networks: dense ones, chains of plain layers that replace them, and layers in place of fused weights."""
