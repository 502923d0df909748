"""Data sets: read, split, and made into examples."""
