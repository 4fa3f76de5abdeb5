"""Models: those known by name, and fetching their files."""
