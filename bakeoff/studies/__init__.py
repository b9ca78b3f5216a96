"""One file a paper's claim."""
