"""Values as plotly figures: pure functions without gradio."""
