"""Statements in named blocks."""

from orchestrator_shared.queries import parse_queries


def test_each_block_is_found_by_its_name() -> None:
    """With the comments inside it, and without what stands before the first."""
    text = """-- What this file is about.

-- name: get_job
-- bounded by: the primary key
SELECT * FROM jobs -- name: not_a_block
WHERE id = :id;

-- name: count
SELECT 1;
"""
    assert parse_queries(text) == {
        "get_job": "-- bounded by: the primary key\n"
        "SELECT * FROM jobs -- name: not_a_block\nWHERE id = :id;",
        "count": "SELECT 1;",
    }


def test_a_file_without_blocks_has_none() -> None:
    """Whatever else it has."""
    assert parse_queries("") == {}
    assert parse_queries("SELECT 1;") == {}
