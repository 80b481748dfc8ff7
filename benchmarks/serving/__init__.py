"""A load generator for any server with OpenAI's API; `python benchmarks/serving --help`."""
