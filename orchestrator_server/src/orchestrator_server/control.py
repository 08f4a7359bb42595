"""The operator's way in: a Unix socket beside the database, for the owner of the server alone."""

import contextlib
import http.client
import json
import socket
from pathlib import Path
from typing import Any, Final

from aiohttp import web

from orchestrator_server.config import Config
from orchestrator_server.operating import Operator
from orchestrator_shared.answers import errors_become_answers
from orchestrator_shared.errors import BadParameter, SettingError, StartError
from orchestrator_shared.folders import short_path

#: How long the server may take for an answer (seconds).
PATIENCE: Final = 60.0
#: How long a command under way may go on once the server stops (seconds).
GRACE: Final = 0.5


class NoServer(StartError):
    """No server answers at {path} ({problem}). Say it where the server runs, as its user and with
    its DB_PATH."""

    exit_code = 1


class CommandRefused(StartError):
    """{problem}"""

    exit_code = 1


def socket_path(config: Config) -> Path:
    """Where the server of this configuration listens for its operator."""
    return config.db_path.with_name(config.db_path.name + ".socket")


class ControlSocket:
    """Serves the operator's commands for the life of the server."""

    def __init__(self, operator: Operator, path: Path) -> None:
        self._path = path
        self._listens = False
        self._runner = web.AppRunner(
            _control_app(operator), access_log=None, shutdown_timeout=GRACE
        )

    async def start(self) -> None:
        """Begin to listen. The lock on the database makes this process the only one to do so.

        Raises:
            SettingError: a socket cannot be made beside the database.
        """
        listening = socket.socket(socket.AF_UNIX)
        try:
            self._path.unlink(missing_ok=True)
            with short_path(self._path) as short:
                listening.bind(short)
            # Nobody can connect before it listens.
            self._path.chmod(0o600)
        except OSError as error:
            listening.close()
            raise SettingError(
                setting="DB_PATH",
                problem=f"the socket {self._path} cannot be made: {error.strerror}",
            ) from error
        await self._runner.setup()
        await web.SockSite(self._runner, listening).start()
        self._listens = True

    async def stop(self) -> None:
        """Listen no more; a command under way has a moment to end."""
        await self._runner.cleanup()
        if self._listens:
            self._path.unlink(missing_ok=True)


def _control_app(operator: Operator) -> web.Application:
    acting = {"gone": operator.gone, "drain": operator.drain, "resume": operator.resume}

    async def clients(_request: web.Request) -> web.Response:
        return web.json_response({"clients": await operator.clients()})

    async def act(request: web.Request) -> web.Response:
        name = request.query.get("name", "")
        if not name:
            raise BadParameter(name="name", problem="it names a client")
        return web.json_response({"message": await acting[request.match_info["action"]](name)})

    async def resume(_request: web.Request) -> web.Response:
        return web.json_response({"message": await operator.unpause()})

    app = web.Application(middlewares=[errors_become_answers])
    app.router.add_get("/clients", clients)
    app.router.add_post(f"/clients/{{action:{'|'.join(acting)}}}", act)
    app.router.add_post("/resume", resume)
    return app


class _Connection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("orch-server", timeout=PATIENCE)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(self._path)


def ask(config: Config, method: str, target: str) -> Any:
    """Have the running server do something; gives back what it answers.

    Raises:
        NoServer: none is there.
        CommandRefused: it cannot be done, and why.
    """
    path = socket_path(config)
    try:
        with short_path(path) as short, contextlib.closing(_Connection(short)) as connection:
            connection.request(method, target)
            response = connection.getresponse()
            answer = json.loads(response.read())
    except (OSError, http.client.HTTPException) as error:
        problem = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise NoServer(path=path, problem=problem) from error
    if response.status != http.client.OK:
        raise CommandRefused(problem=answer["message"])
    return answer
