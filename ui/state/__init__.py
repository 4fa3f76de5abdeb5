"""What the page knows: folds over events and rows of the log, without gradio."""
