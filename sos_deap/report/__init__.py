"""What a run shows: the console, tables, figures, the page and the model card."""
