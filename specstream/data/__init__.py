"""What is asked: tasks and their templates, conversations, files and datasets of rows."""
