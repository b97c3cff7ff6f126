"""Prompt-to-Prompt: editing an inverted image by changing the words of its prompt."""
