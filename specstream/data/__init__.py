"""Prompts and data: tasks and their templates, conversations, rows of files and datasets."""
