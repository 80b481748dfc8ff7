"""The HTTP routes, one family a file."""
