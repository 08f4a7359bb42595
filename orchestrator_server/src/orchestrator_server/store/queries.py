"""The statements of queries.sql by name, and the migrations."""

from functools import cache
from importlib import resources

from orchestrator_shared.queries import read_queries


@cache
def sql(name: str) -> str:
    """The statement of this name.

    Raises:
        KeyError: queries.sql has none.
    """
    return _queries()[name]


@cache
def _queries() -> dict[str, str]:
    return read_queries(resources.files(__package__).joinpath("queries.sql"))


def migrations() -> list[str]:
    """The numbered migrations, in order: their sum is the schema."""
    folder = resources.files(__package__).joinpath("migrations")
    files = sorted((file.name, file) for file in folder.iterdir() if file.name.endswith(".sql"))
    return [file.read_text() for _, file in files]
