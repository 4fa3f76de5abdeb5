"""A loaded model behind prefill, verify, keep and release; and how it is loaded, tested and compiled."""
