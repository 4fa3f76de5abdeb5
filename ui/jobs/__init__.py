"""Work outside the page: one thread per job, one model, and one queue in front of it."""
