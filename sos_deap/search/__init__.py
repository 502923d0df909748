"""Chromosomes, operators and algorithms for DEAP; never imports torch."""
