"""Chromosomes in, fitness out: the evaluator, its cache, its forward passes and its files."""
