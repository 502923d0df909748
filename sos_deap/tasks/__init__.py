"""Data sets, metrics and objectives; never imports DEAP."""
