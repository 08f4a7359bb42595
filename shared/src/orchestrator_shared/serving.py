"""How both programs start and stop: command line, log, open files, signals."""

import argparse
import asyncio
import contextlib
import ipaddress
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from typing import Protocol, TextIO

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from orchestrator_shared import __version__
from orchestrator_shared.errors import SettingError, StartError

log = logging.getLogger(__name__)

#: How long transfers under way may go on after a signal to stop (seconds).
TRANSFER_GRACE = 4.0
#: The least that is left of it after what comes before the stop (seconds).
LEAST_GRACE = 0.5
#: What an app does before it stops, while it is still served; the event: somebody is in a hurry.
WIND_DOWN: web.AppKey[Callable[[asyncio.Event], Awaitable[None]]] = web.AppKey("wind_down")

#: What is to be said of an app once it listens.
WARNING: web.AppKey[str] = web.AppKey("warning")


class Settings(Protocol):
    """What serving needs of a program's configuration."""

    @property
    def host(self) -> str: ...
    @property
    def port(self) -> int: ...
    @property
    def log_level(self) -> str: ...


def parser(program: str, purpose: str) -> argparse.ArgumentParser:
    """The flags that both programs have; they override the environment."""
    flags = argparse.ArgumentParser(prog=program, description=purpose)
    flags.add_argument("--host", help="the address to listen on (HOST)")
    flags.add_argument("--port", help="the port to listen on (PORT)")
    flags.add_argument("--version", action="version", version=f"{program} {__version__}")
    return flags


def set_up_log(level: str) -> None:
    """One line to stderr per event; requests only at debug."""
    handler = _Gathering(sys.stderr)
    handler.setFormatter(_Lines("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # Nobody asks where a line came from, and to find out takes as long as to write it
    # (https://docs.python.org/3/howto/logging.html#optimization).
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    debug = level == "DEBUG"
    for name in ("aiohttp.access", "asyncio"):
        logging.getLogger(name).setLevel(level if debug else "WARNING")
    # What a caller sends that cannot be used is answered, and is no event here.
    logging.getLogger("python_multipart").setLevel(level if debug else "ERROR")
    if not debug:
        logging.getLogger("aiohttp.server").addFilter(_is_ours)


class _Gathering(logging.StreamHandler[TextIO]):
    """Writes the lines of one turn of the event loop together: a commit may have hundreds."""

    _lines: str = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Write it at the end of the turn; at once where there is no loop."""
        waiting = bool(self._lines)
        try:
            self._lines += self.format(record) + self.terminator
        except Exception:
            self.handleError(record)
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.flush()
        else:
            if not waiting:
                loop.call_soon(self.flush)

    def flush(self) -> None:
        """Write what has gathered. What nobody takes, as the disk is full or the reader gone, is no
        event that could be logged."""
        with self.lock or contextlib.nullcontext(), contextlib.suppress(OSError, ValueError):
            lines, self._lines = self._lines, ""
            if lines:
                self.stream.write(lines)
            super().flush()


class _Lines(logging.Formatter):
    """Each line of a message has its time and level. The time of the day is worked out once a
    second: a burst has thousands of lines in one."""

    _second = 0
    _text = ""

    def format(self, record: logging.LogRecord) -> str:
        """As the default has it, but for more than one line."""
        text = super().format(record)
        if "\n" in record.message and not record.exc_info:
            head = text.removesuffix(record.message)
            text = text.replace("\n", "\n" + head)
        return text

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802
        """As the default has it."""
        second = int(record.created)
        if second != self._second:
            self._second, self._text = second, super().formatTime(record, "%Y-%m-%d %H:%M:%S")
        return f"{self._text},{int(record.msecs):03d}"


def _is_ours(record: logging.LogRecord) -> bool:
    """Whether it tells of more than a request that is not HTTP."""
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError))


def raise_open_files() -> None:
    """Let this process open as many files as the system allows it to."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def serve(app: web.Application, settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then stop within 5 seconds, or once the app has wound down.

    Raises:
        SettingError: the address cannot be listened on.
    """
    # aiohttp waits this long twice, for a handler to end and for one that it has cancelled; what is
    # cut ends in time for both.
    runner = web.AppRunner(app, shutdown_timeout=TRANSFER_GRACE + 0.5)
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    try:
        await runner.setup()
        site = web.TCPSite(runner, settings.host, settings.port, backlog=1024)
        try:
            await site.start()
        except OSError as error:
            raise SettingError(
                setting="HOST, PORT",
                problem=f"{settings.host}:{settings.port} cannot be listened on: {error.strerror}",
            ) from error
        log.info("listening on %s", " ".join(_address(site) for site in runner.addresses))
        if (warning := app.get(WARNING)) is not None:
            log.warning(warning)
        _tell_systemd()
        await stop.wait()
        log.info("stopping")
        stopped_at = loop.time()
        if (wind_down := app.get(WIND_DOWN)) is not None:
            stop.clear()
            await wind_down(stop)
        left = max(LEAST_GRACE, stopped_at + TRANSFER_GRACE - loop.time())
        loop.call_later(left, _cut_transfers, runner)
    finally:
        await runner.cleanup()


def _tell_systemd() -> None:
    """Where systemd started this program and waits for that: it listens (sd_notify(3))."""
    # Nothing that is started from here is to speak for it.
    path = os.environ.pop("NOTIFY_SOCKET", "")
    if path:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told, contextlib.suppress(OSError):
            told.connect("\0" + path[1:] if path.startswith("@") else path)
            told.send(b"READY=1")


def _cut_transfers(runner: web.AppRunner) -> None:
    """End the connections that are still there: one that nobody reads from would never end."""
    for connection in runner.server.connections if runner.server else ():
        if connection.transport is not None:
            connection.transport.abort()


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is one that only this machine can reach."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _address(address: tuple[str, int]) -> str:
    host = f"[{address[0]}]" if ":" in address[0] else address[0]
    return f"http://{host}:{address[1]}"


def run(program: str, start: Callable[[], web.Application], settings: Settings) -> int:
    """Run a program to its end and give back its exit code."""
    set_up_log(settings.log_level)
    raise_open_files()

    async def main() -> None:
        await serve(start(), settings)

    try:
        asyncio.run(main())
    except StartError as error:
        sys.stderr.write(f"{program}: {error}\n")
        return error.exit_code
    return 0
