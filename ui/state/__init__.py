"""The state of the page: folds over events and rows of the log, without gradio."""
