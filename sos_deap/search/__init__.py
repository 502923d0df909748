"""The DEAP half: chromosomes, operators, algorithms. Never imports torch."""
