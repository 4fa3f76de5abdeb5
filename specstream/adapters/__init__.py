"""Trained streams and heads: their cards, weights and names, and exchanging them with the Hugging Face Hub."""
