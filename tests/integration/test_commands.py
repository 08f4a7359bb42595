"""The commands of orch-server beside serving: what they print, and what they end with."""

import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from orchestrator_server import cli
from orchestrator_server.commands import COLUMNS, add_commands, table
from orchestrator_shared.serving import parser
from support.commands import command
from support.portal import Portal
from support.processes import Program, programs
from support.system import client_is_there

#: A client as GET /clients tells of it.
UP = {
    "address": "http://a:9000",
    "instance": "0123456789abcdef",
    "service": None,
    "version": "1.0.0",
    "slots": 8,
    "slots_in_use": 3,
    "stuck": 0,
    "unknown_payloads": 0,
    "load": 12.4,
    "last_seen": 1000.0,
    "state": "up",
    "why": "",
}
#: One that was never met.
NEVER = {
    **UP,
    "address": "http://b:9000",
    "instance": None,
    "version": None,
    "slots": 0,
    "slots_in_use": 0,
    "load": None,
    "last_seen": None,
    "state": "lost",
    "why": "it has not been reached yet",
}


@pytest.fixture
async def both(
    tmp_path: Path, session: aiohttp.ClientSession
) -> AsyncIterator[tuple[Program, Program]]:
    """A server, and a client that is up."""
    async with programs(tmp_path) as (server, (client,)):
        await client_is_there(Portal(server.url, session))
        yield server, client


async def test_clients_are_listed(both: tuple[Program, Program]) -> None:
    """A line each below the titles."""
    server, client = both

    done = await command(server, "client", "list")

    assert (done.code, done.errors) == (0, "")
    titles, row = done.out.splitlines()
    assert titles.split()[0] == "ADDRESS"
    assert row.startswith(f"{client.url}  ")
    assert " 0/2 " in row
    assert " up " in row


async def test_a_client_is_drained_and_resumed(both: tuple[Program, Program]) -> None:
    """Each says in a line what it has done; the list shows it."""
    server, client = both
    for action, state in (("drain", "draining"), ("resume", "up")):
        done = await command(server, "client", action, client.url)
        assert (done.code, done.errors) == (0, "")
        assert done.out.count("\n") == 1
        assert client.url in done.out
        assert f" {state} " in (await command(server, "client", "list")).out


async def test_what_cannot_be_done_ends_with_1(both: tuple[Program, Program]) -> None:
    """With a line that says why."""
    server, client = both
    for line in ("client drain nobody", f"client gone {client.url}", "resume"):
        refused = await command(server, *line.split())
        assert refused.code == 1
        assert refused.refusal
    await server.stop()
    for line in ("client list", "client gone x", "resume"):
        refused = await command(server, *line.split())
        assert refused.code == 1
        assert "No server answers" in refused.refusal


async def test_settings_that_cannot_be_used_end_with_2(tmp_path: Path) -> None:
    """As they end the start of the server."""
    server = Program("orch-server", tmp_path, {"MAX_AGE": "two"})
    for line in ("client list", "backup x", "restore x", "resume"):
        refused = await command(server, *line.split())
        assert refused.code == 2
        assert "MAX_AGE" in refused.refusal
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [["stop"], ["client"], ["client", "shoot", "x"], ["client", "drain"], ["backup"], ["restore"]],
    ids=" ".join,
)
def test_what_is_no_command_ends_with_2(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the usage, before anything is done."""
    monkeypatch.setattr(sys, "argv", ["orch-server", *words])
    with pytest.raises(SystemExit) as raised:
        cli.main()
    assert raised.value.code == 2
    assert "usage: orch-server" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--help"], ["client", "backup", "restore", "resume"]),
        (["client", "--help"], ["list", "gone", "drain", "resume"]),
        (["client", "drain", "--help"], ["NAME"]),
        (["backup", "--help"], ["DIR"]),
        (["restore", "--help"], ["DIR"]),
    ],
    ids=" ".join,
)
def test_its_commands_can_be_asked_for(
    words: list[str],
    named: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """--help names each of them, and what it is given."""
    monkeypatch.setattr(sys, "argv", ["orch-server", *words])
    with pytest.raises(SystemExit) as raised:
        cli.main()
    assert raised.value.code == 0
    out = capsys.readouterr().out
    for word in named:
        assert word in out


def test_the_commands_that_the_documentation_shows_are_commands() -> None:
    """Whoever types what stands in docs/operating.md is understood."""
    page = (Path(__file__).parents[2] / "docs" / "operating.md").read_text()
    shown = re.findall(r"^\$ orch-server (.+)$", page, re.M)
    assert {words.split()[0] for words in shown} == {"client", "backup", "restore", "resume"}
    known = parser("orch-server", "")
    add_commands(known)
    for words in shown:
        assert known.parse_args(words.split()).command is not None


def test_the_table_has_a_column_for_each_thing() -> None:
    """Below each other; what nobody knows is a dash."""
    titles, up, never = table([UP, NEVER], now=1003.0).splitlines()

    assert titles.split("  ")[0] == "ADDRESS"
    places = [titles.index(title) for title in COLUMNS]
    ends = [*places[1:], None]
    columns = [
        [line[start:end].strip() for start, end in zip(places, ends, strict=True)]
        for line in (up, never)
    ]
    assert columns == [
        ["http://a:9000", "0123456789abcdef", "any", "1.0.0", "3/8", "12 %", "3 s ago", "up", "-"],
        ["http://b:9000", "-", "any", "-", "0/0", "-", "-", "lost", "it has not been reached yet"],
    ]


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(-5, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "120 min"), (7200, "2 h"),
     (172800, "2 d"), (864000, "10 d")],
)  # fmt: skip
def test_the_time_since_a_client_was_seen_is_readable(seconds: float, shown: str) -> None:
    """In the largest unit of which there are two; a clock that was set back is no matter."""
    assert f"  {shown} ago  " in table([UP], now=1000.0 + seconds)


def test_what_an_operator_has_to_know_stands_under_why() -> None:
    """Slots that a dead job takes, and payloads that nobody here knows."""
    shown = table([{**UP, "stuck": 1, "unknown_payloads": 2, "why": "full"}], now=1000.0)
    assert shown.endswith("  full; stuck after SIGKILL: 1; payloads of unknown jobs: 2")
