"""A model without weights, for tests and for trying the page without a download."""
