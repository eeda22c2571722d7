"""From statistics to a plan: curves, constraints, prices, and the search for a plan that meets the budgets."""
