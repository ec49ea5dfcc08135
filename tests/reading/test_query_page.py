"""docs/query.md: its grammar is the grammar, its queries can be read, and it leaves no field out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ml_dash.reading import where
from ml_dash.reading.facts import FIELDS, STATS

PAGE = (Path(__file__).parents[2] / "docs" / "query.md").read_text(encoding="utf-8")
TABLES = re.findall(r"<!-- queries -->\n\n\| .*?\n\|---\|---\|\n(.*?)\n\n", PAGE, re.DOTALL)
QUERIES = [match[1] for table in TABLES for match in re.finditer(r"^\| `(.*?)` \|", table, re.MULTILINE)]


def test_the_grammar_of_the_page_is_the_grammar() -> None:
    shown = re.search(r"<!-- grammar -->\n```text\n(.*?)```", PAGE, re.DOTALL)
    assert shown is not None
    assert shown[1] == Path(where.__file__).with_name("where.lark").read_text(encoding="utf-8")


@pytest.mark.parametrize("query", [*QUERIES, re.findall(r"```text\n(.*?)\n```", PAGE)[0]])
def test_every_query_of_the_page_can_be_read(query: str) -> None:
    where.parse(query.replace(r"\|", "|"))


def test_the_page_has_queries_and_names_every_field() -> None:
    assert len(QUERIES) > 15
    names = "\n".join(re.findall(r"^\| .*? \|", PAGE.partition("## Fields")[2], re.MULTILINE))
    assert [name for name in FIELDS if f"`{name}`" not in names] == []
    assert [stat for stat in STATS if f".{stat}`" not in names] == []
