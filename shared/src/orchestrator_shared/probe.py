"""The command `probe`: whether the program that runs here with the same settings is well.

For Docker and Kubernetes, which ask every few seconds: so it imports little.
"""

import argparse
import http.client
import json
from typing import Any, Final

from orchestrator_shared.client_token import ClientToken
from orchestrator_shared.errors import StartError
from orchestrator_shared.protocol import H_PROTOCOL, PROTOCOL

#: How long it waits for an answer (seconds).
PATIENCE: Final = 5.0
#: Addresses to listen on that are none to connect to, and what answers for them.
ANY: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - nothing listens here


class Unwell(StartError):
    """{problem}"""

    exit_code = 1


def add_probe(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", **own: Any) -> None:
    """Give a program the command; `own` are further defaults of it."""
    purpose = "ask the program that runs here with the same settings whether it is well"
    parser = commands.add_parser("probe", help=purpose, description=purpose)
    parser.add_argument(
        "route",
        nargs="?",
        choices=("health", "live"),
        default="health",
        help="health: whether it is well (the default); live: whether it turns",
    )
    parser.set_defaults(**own)


def probe(host: str, port: int, token: ClientToken | None, route: str) -> str:
    """Ask once; gives back what was answered, in a few words.

    Raises:
        Unwell: it does not answer, or not with 200; the message says why.
    """
    where = f"{host}:{port}/{route}"
    connection = http.client.HTTPConnection(ANY.get(host, host), port, timeout=PATIENCE)
    try:
        own = {H_PROTOCOL: str(PROTOCOL), **(token.headers if token else {})}
        connection.request("GET", "/" + route, headers=own)
        answer = connection.getresponse()
        body = answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise Unwell(problem=f"{where} does not answer: {error or type(error).__name__}") from error
    finally:
        connection.close()
    said = _said(body)
    if answer.status != 200:
        raise Unwell(problem=f"{where} answers {answer.status}: {said}")
    return said


def _said(body: bytes) -> str:
    """What is wrong, as /health has it; else how it is."""
    try:
        answer = json.loads(body)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        return body[:200].decode(errors="replace")
    problems = answer.get("problems") or [answer.get("message") or answer.get("status")]
    return "; ".join(map(str, problems))
