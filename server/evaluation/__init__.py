"""Whether adapters help: examples run with the base and with adapters, compared, and judged."""
