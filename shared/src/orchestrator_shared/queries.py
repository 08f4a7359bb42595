"""SQL in named blocks: statements live in .sql files, each below a line `-- name: …`."""

import re
from importlib.resources.abc import Traversable


def parse_queries(text: str) -> dict[str, str]:
    """Split the text of an .sql file at its `-- name:` lines."""
    blocks = re.split(r"^-- name: (\w+)$", text, flags=re.M)[1:]
    return dict(zip(blocks[::2], (block.strip() for block in blocks[1::2]), strict=True))


def read_queries(file: Traversable) -> dict[str, str]:
    """The named blocks of a file that belongs to a package."""
    return parse_queries(file.read_text())
