"""Keeps what a soak found, beside the benchmarks' results."""

import json
from typing import Any

from machine import fingerprint, results_path, write_results


def keep(name: str, results: dict[str, Any]) -> None:
    """Writes `benchmarks/results/soak-<name>.json`."""
    write_results(f"soak-{name}", results)


def keep_part(name: str, part: str, results: dict[str, Any]) -> None:
    """Writes one part of it and keeps the others, each with the day and commit it is of."""
    path = results_path(f"soak-{name}")
    parts = json.loads(path.read_text()).get("parts", {}) if path.exists() else {}
    machine = fingerprint()
    of = {key: machine[key] for key in ("date", "commit")}
    write_results(f"soak-{name}", {"parts": parts | {part: results | of}})
