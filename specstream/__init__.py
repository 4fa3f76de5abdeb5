"""Speculative Streaming."""
