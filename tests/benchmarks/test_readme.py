"""The performance tables of README and docs are what the results files say."""

import re
from pathlib import Path

import pytest
import readme
from tables import TABLES

pages = pytest.mark.parametrize("page", readme.PAGES, ids=lambda page: page.name)


@pages
def test_tables_are_those_of_the_results(page: Path) -> None:
    text = page.read_text()
    assert readme.with_tables(text) == text, "make readme"


def test_each_table_stands_in_one_place() -> None:
    marks = [m for page in readme.PAGES for m in re.findall(r"<!-- (\w+) -->", page.read_text())]
    assert sorted(marks) == sorted(TABLES)


@pages
def test_another_figure_is_mended(page: Path) -> None:
    text = page.read_text()
    name = re.findall(r"<!-- (\w+) -->", text)[-1]
    table = TABLES[name]()
    assert table in text
    other = text.replace(table, re.sub(r"\d", "5", table))
    assert other != text
    assert readme.with_tables(other) == text
