"""Writes the tables of README.md and docs/performance.md from results/*.json.

    python benchmarks/readme.py            # writes them
    python benchmarks/readme.py --check    # fails where a table is not what the results say

A table stands between `<!-- name -->` and `<!-- /name -->`; `benchmarks/tables.py` makes it.
"""

import re
from pathlib import Path

import tables
import typer

PAGES = [Path(__file__).parents[1] / name for name in ("README.md", "docs/performance.md")]
BLOCK = re.compile(r"<!-- (\w+) -->\n.*?<!-- /\1 -->", re.DOTALL)


def with_tables(text: str) -> str:
    """The text with each of its tables made anew; raises KeyError for one that nobody makes."""
    return BLOCK.sub(lambda found: block(found[1]), text)


def block(name: str) -> str:
    """A table between its marks."""
    return f"<!-- {name} -->\n{tables.TABLES[name]()}\n<!-- /{name} -->"


def main(check: bool = False) -> None:
    """Brings both pages up to date, or says that one is not."""
    for page in PAGES:
        text = page.read_text()
        made = with_tables(text)
        if check and made != text:
            raise SystemExit(f"{page.name}: a table differs from its results: make readme")
        page.write_text(made)


if __name__ == "__main__":
    typer.run(main)
