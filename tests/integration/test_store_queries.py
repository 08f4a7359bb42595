"""Every statement of queries.sql: called by somebody, and never a scan of all jobs."""

import ast
import itertools
import re
import sqlite3
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import pytest

import orchestrator_server
from orchestrator_server.store.queries import sql
from orchestrator_server.store.records import LIST_FILTERS
from orchestrator_shared.queries import parse_queries
from support.store import bare_store

TEXT = resources.files("orchestrator_server.store").joinpath("queries.sql").read_text()
QUERIES = parse_queries(TEXT)
#: The functions that take the name of a statement.
CALLS = {"sql", "one", "_changed", "_change", "_select", "_ids"}
FILTERS = [
    chosen
    for n in range(len(LIST_FILTERS) + 1)
    for chosen in itertools.combinations(LIST_FILTERS, n)
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sqlite3.Connection]:
    """An empty database: plans are made without knowing how many rows there will be."""
    with bare_store(tmp_path_factory.mktemp("store") / "db.sqlite") as connection:
        yield connection


def _plan(store: sqlite3.Connection, statement: str) -> list[str]:
    bare = re.sub(r"--.*", "", statement)
    values = dict.fromkeys(re.findall(r":(\w+)", bare))
    return [row["detail"] for row in store.execute(f"EXPLAIN QUERY PLAN {statement}", values)]


def _scans(plan: list[str]) -> list[str]:
    """The steps that go through all jobs, by an index or without."""
    return [step for step in plan if re.match(r"SCAN (jobs|history)\b", step)]


@pytest.mark.parametrize("name", QUERIES)
def test_no_statement_scans_all_jobs(store: sqlite3.Connection, name: str) -> None:
    """One that does, or goes through all of history, must say what bounds it."""
    assert not _scans(_plan(store, sql(name))) or "-- bounded:" in sql(name)


@pytest.mark.parametrize("name", [name for name in QUERIES if "-- bounded:" in QUERIES[name]])
def test_no_bound_is_claimed_without_need(store: sqlite3.Connection, name: str) -> None:
    """The comment stands only where the plan has something to explain."""
    assert _scans(_plan(store, sql(name))) or name == "list_jobs"


@pytest.mark.parametrize("chosen", FILTERS, ids="+".join)
def test_every_combination_of_filters_uses_an_index(
    store: sqlite3.Connection, chosen: tuple[str, ...]
) -> None:
    """And gives the newest first without sorting what it found."""
    condition = " AND ".join(LIST_FILTERS[name] for name in chosen) or "true"
    plan = _plan(store, sql("list_jobs").replace("AND true", f"AND {condition}"))

    (jobs,) = [step for step in plan if re.match(r"(SCAN|SEARCH) jobs\b", step)]
    assert jobs.startswith("SEARCH jobs USING")
    if chosen:
        assert any(f"{name}=?" in jobs for name in chosen)
    assert not any("TEMP B-TREE" in step for step in plan)


def test_the_place_for_filters_is_there() -> None:
    """The one statement that is composed has the text that the filters replace."""
    assert sql("list_jobs").count("AND true") == 1


def test_every_statement_is_called_by_somebody() -> None:
    """A block of queries.sql that no module names is left over."""
    called = set()
    for file in Path(str(resources.files(orchestrator_server))).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call):
                continue
            function = getattr(node.func, "id", getattr(node.func, "attr", ""))
            if function in CALLS:
                called |= {arg.value for arg in node.args if isinstance(arg, ast.Constant)}
    assert set(QUERIES) - called == set()


def test_no_name_is_given_twice() -> None:
    """The second of two blocks of one name would hide the first."""
    names = re.findall(r"^-- name: (\w+)$", TEXT, re.M)
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", QUERIES)
def test_time_is_passed_in(name: str) -> None:
    """No statement asks SQLite for the time or for chance: a test could not set them."""
    assert not re.search(r"\b(datetime|julianday|unixepoch|strftime|random)\b|'now'", QUERIES[name])
