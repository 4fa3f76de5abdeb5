"""Our decoding inside other libraries."""
