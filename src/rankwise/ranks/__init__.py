"""Rules that choose ranks; they see curves, budgets and constraints, never data or models."""
