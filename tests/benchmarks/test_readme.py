"""README's performance tables are what the results files say."""

import re

import readme
from tables import TABLES


def test_tables_are_those_of_the_results() -> None:
    text = readme.README.read_text()
    assert readme.with_tables(text) == text, "make readme"


def test_each_table_stands_in_the_readme_once() -> None:
    marks = re.findall(r"<!-- (\w+) -->", readme.README.read_text())
    assert sorted(marks) == sorted(TABLES)


def test_another_figure_is_mended() -> None:
    text = readme.README.read_text()
    table = readme.block("smoke")
    assert table in text
    other = text.replace(table, re.sub(r"\d", "5", table))
    assert other != text
    assert readme.with_tables(other) == text
