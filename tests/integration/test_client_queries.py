"""The statements of the client's index: each is used, and none looks through all payloads."""

import re
import sqlite3
from importlib import resources
from pathlib import Path

import pytest

import orchestrator_client
from orchestrator_shared.queries import read_queries

PACKAGE = resources.files(orchestrator_client)
QUERIES = read_queries(PACKAGE.joinpath("payloads.sql"))


@pytest.mark.parametrize("name", sorted(QUERIES))
def test_a_statement_is_used(name: str) -> None:
    """What nobody calls would be maintained for nothing."""
    assert f'"{name}"' in PACKAGE.joinpath("payloads.py").read_text()


@pytest.mark.parametrize("name", sorted(set(QUERIES) - {"schema"}))
def test_a_statement_finds_what_it_needs(name: str, tmp_path: Path) -> None:
    """By an index: what was dropped is remembered for long, and there may be much of it."""
    connection = sqlite3.connect(tmp_path / "index.sqlite")
    connection.executescript(QUERIES["schema"])
    values = dict.fromkeys(re.findall(r":(\w+)", QUERIES[name]), 0)

    plan = connection.execute(f"EXPLAIN QUERY PLAN {QUERIES[name]}", values).fetchall()

    connection.close()
    assert not [step[3] for step in plan if step[3].startswith("SCAN payloads")]
