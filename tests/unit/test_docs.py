"""The documentation says what the code does."""

import ast
import inspect
import os
import re
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from types import ModuleType

import pytest
from aiohttp import web

from orchestrator_client import app as client_app
from orchestrator_client import config as client_config
from orchestrator_server import app as server_app
from orchestrator_server import config as server_config
from orchestrator_shared.portal import JobSchema, WaitingSchema
from orchestrator_shared.status import PAYLOAD_TRANSITIONS, TRANSITIONS

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(
    page.relative_to(ROOT).as_posix()
    for page in (*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "examples").rglob("*.md"))
)


def read(page: str) -> str:
    """A page of the documentation."""
    return (ROOT / page).read_text()


def section(page: str, heading: str) -> str:
    """What stands below a heading, down to the next one of its rank."""
    rank = heading.partition(" ")[0]
    return read(page).partition(f"\n{heading}\n")[2].partition(f"\n{rank} ")[0]


def rows(text: str) -> dict[str, list[str]]:
    """The rows of the tables whose first cell is code: that, and the other cells."""
    found = re.findall(r"^\| `([^`]+)` \|(.*)\|$", text, re.M)
    return {name: [cell.strip() for cell in cells.split(" | ")] for name, cells in found}


# --- the states


def arrows(diagram: str) -> set[tuple[str, str]]:
    """The changes that a state diagram shows; a frame stands for each state in it."""
    frames = {
        name: re.findall(r"[A-Z][a-z]+", body)
        for name, body in re.findall(r"state (\w+) \{(.*?)\}", diagram, re.S)
    }
    return {
        (start, end)
        for source, target in re.findall(r"(\w+) --> (\w+)", diagram)
        for start in frames.get(source, [source])
        for end in frames.get(target, [target])
    }


@pytest.mark.parametrize(
    ("heading", "transitions"),
    [
        ("## The states of a job", TRANSITIONS),
        ("## The states of a payload", PAYLOAD_TRANSITIONS),
    ],
)
def test_the_state_diagram_is_the_code(
    heading: str, transitions: Mapping[StrEnum, frozenset[StrEnum]]
) -> None:
    """Every change that the code allows is an arrow, and there is no other arrow."""
    diagram = section("docs/architecture.md", heading).partition("```mermaid")[2].split("```")[0]

    allowed = {(str(old), str(new)) for old, news in transitions.items() for new in news}

    assert arrows(diagram) == allowed


# --- the settings


def calls_of_read(module: ModuleType) -> Iterator[tuple[str, str, str | None]]:
    """Each setting that a module reads: its name, its parser, its default (None: not fixed)."""
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id == "read"
        ):
            _, name, parse, default = node.args
            fixed = str(default.value) if isinstance(default, ast.Constant) else None
            if isinstance(name, ast.Call):  # variable("MAX_RUNS"): of a service
                yield "SERVICE_<NAME>_" + ast.literal_eval(name.args[0]), ast.unparse(parse), fixed
            else:
                yield ast.literal_eval(name), ast.unparse(parse), fixed


PROGRAMS: list[tuple[str, ModuleType, Callable[[], object]]] = [
    ("## The server", server_config, server_config.Config.from_env),
    ("## The client", client_config, client_config.Config.from_env),
]

#: Defaults that are no text in the code, as they depend on something.
DEPENDING = {
    "SLOTS": "CPUs / `CPUS_PER_SLOT`",
    "SERVICE_<NAME>_MAX_RUNS": "the slots of its clients",
    "SERVICE_<NAME>_MAX_AGE": "`MAX_AGE`",
}


@pytest.mark.parametrize(("heading", "module", "_"), PROGRAMS)
def test_the_settings_are_those_of_the_code(heading: str, module: ModuleType, _: object) -> None:
    """Each setting that a program reads is named with its default and its unit, and no other."""
    described = rows(section("docs/configuration.md", heading))

    found = {name: (parse, default) for name, parse, default in calls_of_read(module)}

    assert set(described) == set(found)
    for name, (parse, default) in found.items():
        shown, unit = described[name][:2]
        assert shown == DEPENDING.get(name, f"`{default}`" if default else "none"), name
        for kind, expected in (("size", "bytes"), ("seconds", "seconds"), ("interval", "seconds")):
            if re.search(rf"settings\.{kind}\b", parse):
                assert unit == expected, name


@pytest.mark.parametrize(("heading", "_", "from_env"), PROGRAMS)
def test_the_defaults_that_are_named_change_nothing(
    heading: str, _: object, from_env: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who sets each setting to the default that the table gives gets what nobody has set."""
    for name in os.environ:
        monkeypatch.delenv(name)
    unset = from_env()

    for name, (default, *_rest) in rows(section("docs/configuration.md", heading)).items():
        if default.startswith("`") and not name.startswith("SERVICE_"):
            monkeypatch.setenv(name, default.strip("`"))

    assert from_env() == unset


def test_every_suffix_of_a_service_is_read() -> None:
    """What a service may set is what is read of it: none is taken and passed over."""
    services = {
        name.removeprefix("SERVICE_<NAME>_")
        for name, _, _ in calls_of_read(server_config)
        if name.startswith("SERVICE_<NAME>_")
    }

    assert services == set(server_config.SERVICE_SETTINGS)


# --- the routes


@pytest.mark.parametrize(
    ("add_routes", "before"),
    [(server_app._add_routes, True), (client_app._add_routes, False)],
    ids=["server", "client"],
)
def test_every_route_is_described(
    add_routes: Callable[[web.Application], None], before: bool
) -> None:
    """docs/api.md names method and path of each route, in the half of its program."""
    halves = read("docs/api.md").partition("\n## The client's interface\n")
    half = halves[0 if before else 2]
    app = web.Application()
    add_routes(app)

    routes = {
        f"`{route.method} {route.resource.canonical}`".replace("{id}", "<id>")
        for route in app.router.routes()
        if route.resource is not None and route.method != "HEAD"
    }

    assert {route for route in routes if route not in half} == set()


def test_every_field_of_the_record_is_described() -> None:
    """The table of the record has each of its fields."""
    table = section("docs/api.md", "## How a job stands")
    named = set(re.findall(r"`(\w+)`", table))

    assert set(JobSchema().fields) <= named
    assert set(WaitingSchema().fields) <= named


# --- links, targets, paths


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(
        r"^#+ (.+)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.S), re.M
    )
    return {
        re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).strip().replace(" ", "-")
        for heading in headings
    }


def links(page: str) -> list[str]:
    """Where the links of a page lead that are no URLs."""
    text = re.sub(r"```.*?```", "", read(page), flags=re.S)
    found = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"^\[[^\]]+\]: (\S+)$", text, re.M)
    return [link for link in found if "://" not in link]


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    """Each link within the repository leads to a file, or a heading, that is there."""
    broken = []
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)

    assert broken == []


@pytest.mark.parametrize("page", PAGES)
def test_every_reference_is_defined(page: str) -> None:
    """A link by a name, such as [status.py][], has a line that says where it leads."""
    text = re.sub(r"```.*?```", "", read(page), flags=re.S)

    used = set(re.findall(r"\[([^\]\[]+)\]\[\]", text))

    assert used == set(re.findall(r"^\[([^\]]+)\]: ", text, re.M))


def test_every_target_of_make_is_there() -> None:
    """What the pages tell somebody to call with make can be called."""
    targets = set(re.findall(r"^([a-z-]+):.*##", read("Makefile"), re.M))

    called = {
        (page, target)
        for page in PAGES
        for code in re.findall(r"```.*?```|`[^`\n]+`", read(page), re.S)
        for target in re.findall(r"(?:^|[`\s])make ([a-z-]+)", code)
    }

    assert {(page, target) for page, target in called if target not in targets} == set()
    assert {"demo", "test", "server", "client"} <= {target for _, target in called}


@pytest.mark.parametrize("page", [page for page in PAGES if not page.startswith("examples/")])
def test_every_path_that_is_named_is_there(page: str) -> None:
    """A path below one of the repository's folders, written as code, exists."""
    folders = "shared|orchestrator_server|orchestrator_client|tests|examples|docs|deploy|\\.ci"
    named = re.findall(rf"`((?:{folders})/[^`\s]*)`", read(page))

    assert [path for path in named if not (ROOT / path).exists()] == []
