"""The page: gradio and plotly over the public names of specstream and of its log."""
