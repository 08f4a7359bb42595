"""The rules of the layout: who may import whom, how long a module is, where SQL stands."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "orchestrator_shared": ROOT / "shared/src/orchestrator_shared",
    "orchestrator_server": ROOT / "orchestrator_server/src/orchestrator_server",
    "orchestrator_client": ROOT / "orchestrator_client/src/orchestrator_client",
}
MODULES = [file for folder in PACKAGES.values() for file in sorted(folder.rglob("*.py"))]
LINES_MOST = 400
VAGUE = {"utils", "util", "helpers", "helper", "common", "models", "manager", "misc"}
#: What says how the database is used, not what is in it.
NO_DATA = ("PRAGMA ", "BEGIN", "SAVEPOINT ", "RELEASE ", "ROLLBACK", "COMMIT")


def _name(file: Path) -> str:
    return str(file.relative_to(ROOT))


def _imports(file: Path) -> Iterator[str]:
    """The packages that a module imports, from the top."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{_name(file)}:{node.lineno} imports relative to itself"
            yield (node.module or "").split(".")[0]


def test_there_are_modules_to_look_at() -> None:
    """The rules below are not met by an empty list."""
    assert len(MODULES) > 50


@pytest.mark.parametrize(
    ("package", "may_import"),
    [
        ("orchestrator_shared", {"orchestrator_shared"}),
        ("orchestrator_server", {"orchestrator_shared", "orchestrator_server"}),
        ("orchestrator_client", {"orchestrator_shared", "orchestrator_client"}),
    ],
)
def test_arrows_point_to_shared_only(package: str, may_import: set[str]) -> None:
    """Server and client never import each other, and shared imports neither."""
    for file in PACKAGES[package].rglob("*.py"):
        ours = {name for name in _imports(file) if name.startswith("orchestrator_")}
        assert ours <= may_import, _name(file)


def test_only_clients_and_app_talk_http_to_clients() -> None:
    """No other module of the server imports aiohttp's client side."""
    server = PACKAGES["orchestrator_server"]
    asking = {
        file.relative_to(server).parts[0]
        for file in server.rglob("*.py")
        if re.search(r"^import aiohttp$|import .*Client(Session|Timeout)", file.read_text(), re.M)
    }
    assert asking == {"clients"}


def test_outside_the_edges_nothing_knows_http_status_codes() -> None:
    """The steps raise domain errors; api/ and the one table in shared turn them into answers."""
    server = PACKAGES["orchestrator_server"]
    for file in server.rglob("*.py"):
        if file.parent.name in ("api", "clients"):
            continue
        assert not re.search(r"web\.HTTP|status=\d{3}", file.read_text()), _name(file)


@pytest.mark.parametrize("file", MODULES, ids=_name)
def test_no_module_is_too_long(file: Path) -> None:
    """Whoever opens a module can read it to its end."""
    assert len(file.read_text().splitlines()) <= LINES_MOST


def test_every_module_is_named_for_what_it_does() -> None:
    """There is no drawer for whatever fits nowhere else."""
    names = {part for file in MODULES for part in file.relative_to(ROOT).with_suffix("").parts}
    assert not names & VAGUE


def _strings(file: Path) -> Iterator[ast.Constant]:
    """The texts of a module that are no docstrings."""
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            body[0].value = ast.Constant(None)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node


def test_sql_stands_in_sql_files_only() -> None:
    """Python has the names of statements, and what begins and ends a transaction."""
    statement = re.compile(
        r"\b(SELECT\s.+\sFROM|INSERT\s+(OR\s+\w+\s+)?INTO|UPDATE\s+\w+\s+SET|DELETE\s+FROM"
        r"|CREATE\s+(TABLE|INDEX|TRIGGER|UNIQUE)|DROP\s+\w+|ALTER\s+TABLE)\b",
        re.I | re.S,
    )
    found = [
        f"{_name(file)}:{text.lineno}"
        for file in MODULES
        for text in _strings(file)
        if statement.search(str(text.value))
    ]
    assert found == []


def test_python_executes_only_named_statements() -> None:
    """What is handed to SQLite as a text in place says how the database is used, no more."""
    for file in MODULES:
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            if node.func.attr not in ("execute", "executescript", "executemany"):
                continue
            first = node.args[0]
            if isinstance(first, ast.JoinedStr):
                first = first.values[0]
            if isinstance(first, ast.Constant):
                assert str(first.value).startswith(NO_DATA), f"{_name(file)}:{node.lineno}"
