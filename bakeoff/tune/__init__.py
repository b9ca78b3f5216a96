"""Fine-tuning a causal language model on a user's text: what is gained, what is lost, what it costs."""
