"""Techniques of training for low rank by name, and the training that uses them."""

from __future__ import annotations

from .low_rank_training import train_low_rank
from .recipes import RECIPES, Recipe, get_recipe

__all__ = ["RECIPES", "Recipe", "get_recipe", "train_low_rank"]
