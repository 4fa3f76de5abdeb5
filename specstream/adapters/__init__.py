"""Trained streams and heads: their cards, weights, names, and the way to the Hugging Face Hub."""
