"""Openings of messages of many kinds, from which a model writes its own prompts. Standard library only."""

from __future__ import annotations

OPENINGS: dict[str, tuple[str, ...]] = {
    "explain": ("Explain", "What is", "Why do", "How does", "What is the difference between"),
    "write": ("Write a short story about", "Write a poem about", "Write an email to", "Write a review of", "Describe"),
    "roleplay": ("You are a", "Pretend you are", "Act as a", "Imagine that you are"),
    "reason": ("If", "Which is better:", "What would happen if", "Is it true that", "Give me reasons why"),
    "code": ("Write a Python function that", "Write a SQL query to", "How do I", "Fix the error in this code:\n\n"),
    "extract": ("List all names in the following text:\n\n", "Extract the dates from this text:\n\n"),
    "translate": ("Translate the following sentence to French:\n\n", "Translate to Spanish:\n\n"),
    "summarise": ("Summarize the following text in one sentence:\n\n", "Give a short summary of this article:\n\n"),
    "maths": ("Solve:", "What is", "A farmer has", "If a train travels", "Calculate"),
    "text": ("Read the text and answer the question.\n\nText:", "Rewrite this paragraph more formally:\n\n"),
    "advice": ("How can I", "Give me five tips for", "What should I", "I want to", "Create a list of", "Suggest"),
    "any": ("",),
}


def openings() -> list[str]:
    """All openings, alternating between the kinds, so that every kind occurs equally often."""
    longest = max(map(len, OPENINGS.values()))
    return [kind[turn % len(kind)] for turn in range(longest) for kind in OPENINGS.values()]
