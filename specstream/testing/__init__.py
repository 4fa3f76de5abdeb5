"""A model without weights, for tests and for the page without a download."""
