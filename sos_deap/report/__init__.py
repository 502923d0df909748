"""Output of a run: the console, tables, figures, the page and the model card."""
