"""Keeps what a soak found, beside the benchmarks' results."""

from typing import Any

from machine import write_results


def keep(name: str, results: dict[str, Any]) -> None:
    """Writes `benchmarks/results/soak-<name>.json`."""
    write_results(f"soak-{name}", results)
