"""Models: which are known by name, and how their files get here."""
