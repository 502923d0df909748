"""Models: find, mask and slice attention heads, measure, load and save; DEAP is not imported."""
