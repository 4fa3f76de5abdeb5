"""Drafters: what is proposed. One small file per method; ``registry`` says which drafter a method has."""
