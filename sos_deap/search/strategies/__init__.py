"""Searches that propose and learn, one a file."""
