"""A loaded model as the decode loop sees it: prefill, verify, keep, release; loaded, tested, compiled."""
