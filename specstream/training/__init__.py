"""Training of stream adapters and of heads: examples, loss, loop, checkpoints, and trainings as processes."""
