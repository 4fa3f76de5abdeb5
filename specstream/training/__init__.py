"""Training stream adapters and heads: examples, loss, loop, checkpoints, and training runs as processes."""
