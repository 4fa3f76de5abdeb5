"""Work outside of the page: one thread a job, one model, one queue before it."""
