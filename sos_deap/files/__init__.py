"""Atomic writing of files and folders, run folders, and chromosome files."""
