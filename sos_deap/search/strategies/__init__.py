"""Searches at constant sparsity with an ask-and-tell interface, one per file."""
