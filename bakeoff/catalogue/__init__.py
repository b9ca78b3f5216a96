"""The catalogue: every paper with its claim, what implements it here, and what came of it."""
