"""What the command orch-server does beside serving: a subcommand each, and its one line."""

import argparse
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final
from urllib.parse import urlencode

from orchestrator_server.backup import back_up
from orchestrator_server.config import Config
from orchestrator_server.control import ask
from orchestrator_server.restore import restore
from orchestrator_shared import settings
from orchestrator_shared.probe import add_probe, probe

#: The columns of `client list`: their titles, and what of a client stands there.
COLUMNS: Final[Mapping[str, str]] = {
    "ADDRESS": "{address}",
    "INSTANCE": "{instance}",
    "SERVICE": "{service}",
    "VERSION": "{version}",
    "SLOTS": "{slots_in_use}/{slots}",
    "LOAD": "{load}",
    "LAST SEEN": "{last_seen}",
    "STATE": "{state}",
    "WHY": "{why}",
}


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Give the parser the subcommands; `command` is what carries out the one that was chosen."""
    parser.set_defaults(command=None)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    client = commands.add_parser("client", help="look after the clients of a running server")
    actions = client.add_subparsers(title="actions", metavar="ACTION", required=True)
    actions.add_parser("list", help="show all clients").set_defaults(command=_list_clients)
    for action, purpose in (
        ("gone", "a client does not come back: other clients may have its jobs"),
        ("drain", "send a client nothing new, and have it hand back what it has not begun"),
        ("resume", "send it jobs again"),
    ):
        acting = actions.add_parser(action, help=purpose, description=purpose)
        acting.add_argument(
            "name", metavar="NAME", help="its address, its instance, or how that begins"
        )
        acting.set_defaults(command=_act, action=action)

    for name, purpose in (
        ("backup", "copy database and files into the new folder DIR, while the server runs or not"),
        ("restore", "put the backup in DIR where no database and no files are (any more)"),
    ):
        moving = commands.add_parser(name, help=purpose, description=purpose)
        moving.add_argument("folder", metavar="DIR", type=settings.path)
        moving.set_defaults(command=_back_up if name == "backup" else _restore)

    purpose = "take over the jobs of a stopped server of the original"
    taking = commands.add_parser("import-legacy", help=purpose, description=purpose)
    taking.add_argument("database", metavar="DB", type=settings.path, help="its database")
    taking.add_argument(
        "data", metavar="DATA", type=settings.path, help="where the files of its jobs are now"
    )
    taking.add_argument(
        "--client",
        metavar="SERVICE=URL",
        action="append",
        default=[],
        help="the client that has the jobs of a service; needed where the service has several",
    )
    taking.set_defaults(command=_import)

    add_probe(commands, command=_probe)

    purpose = "have a server that was restored call its clients"
    resume = commands.add_parser("resume", help=purpose, description=purpose)
    resume.set_defaults(command=_resume)


def _list_clients(config: Config, _flags: argparse.Namespace) -> str:
    return table(ask(config, "GET", "/clients")["clients"], time.time())


def _act(config: Config, flags: argparse.Namespace) -> str:
    target = f"/clients/{flags.action}?{urlencode({'name': flags.name})}"
    message: str = ask(config, "POST", target)["message"]
    return message


def _probe(config: Config, flags: argparse.Namespace) -> str:
    return probe(config.host, config.port, None, flags.route)


def _resume(config: Config, _flags: argparse.Namespace) -> str:
    message: str = ask(config, "POST", "/resume")["message"]
    return message


def _back_up(config: Config, flags: argparse.Namespace) -> str:
    os.umask(0o077)
    return back_up(config, flags.folder)


def _restore(config: Config, flags: argparse.Namespace) -> str:
    os.umask(0o077)
    return restore(config, flags.folder)


def _import(config: Config, flags: argparse.Namespace) -> str:
    # Other commands are done sooner without it.
    from orchestrator_server.import_original import import_original

    os.umask(0o077)
    return import_original(config, flags.database, flags.data, flags.client)


def table(clients: Sequence[Mapping[str, Any]], now: float) -> str:
    """Clients as lines of columns; what nobody knows is a dash. `now` in seconds since 1970."""
    lines = [list(COLUMNS)]
    for client in clients:
        seen, load = client["last_seen"], client["load"]
        shown = {
            **client,
            "service": client["service"] or "any",
            "load": None if load is None else f"{load:.0f} %",
            "last_seen": None if seen is None else f"{_duration(now - seen)} ago",
            "why": "; ".join(_remarks(client)),
        }
        shown = {name: "-" if value in (None, "") else value for name, value in shown.items()}
        lines.append([column.format_map(shown) for column in COLUMNS.values()])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _remarks(client: Mapping[str, Any]) -> Iterator[str]:
    if client["why"]:
        yield client["why"]
    if client["stuck"]:
        yield f"stuck after SIGKILL: {client['stuck']}"
    if client["unknown_payloads"]:
        yield f"payloads of unknown jobs: {client['unknown_payloads']}"


def _duration(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
