"""Values as HTML: pure functions without gradio."""
