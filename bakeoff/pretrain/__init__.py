"""Training a model from scratch: which way makes the best of an architecture, a text and a budget."""
