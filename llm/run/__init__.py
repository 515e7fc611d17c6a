"""A run from its setup to its end: session, budget, dry run, comparison of recipes."""
