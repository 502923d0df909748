"""Data, metrics and objectives. Never imports DEAP."""
