"""Training of stream adapters."""
