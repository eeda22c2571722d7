"""From statistics to a plan: curves, constraints, prices, and the search for what meets the budgets."""
