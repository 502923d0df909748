"""The torch half: heads, masks, slices. Never imports DEAP."""
