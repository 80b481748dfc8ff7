"""Versions are read and lowered in processes of their own: what is in a file stays in there."""
