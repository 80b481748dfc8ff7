"""The servers that `benchmarks/rivals.py` compares, one a file, behind one protocol."""
