"""How a program starts, stops and tells what is wrong, as a process of its own."""

import asyncio
import contextlib
import re
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator

import pytest

PROGRAM = """
import asyncio, resource, sys
from types import SimpleNamespace
from aiohttp import web
from orchestrator_shared import serving
from orchestrator_shared.answers import errors_become_answers
from orchestrator_shared.errors import StartError

host, port, level, trouble = sys.argv[1:]
serving.TRANSFER_GRACE = 0.5
stopping = asyncio.Event()

async def quick(request):
    return web.Response(text="%d %d" % resource.getrlimit(resource.RLIMIT_NOFILE))

async def waits(request):
    response = web.StreamResponse()
    await response.prepare(request)
    await stopping.wait()
    await response.write(b"as it is now")
    return response

async def endless(request):
    response = web.StreamResponse()
    await response.prepare(request)
    await asyncio.Event().wait()

async def on_shutdown(app):
    stopping.set()

class Worse(StartError):
    '''Worse: {problem}'''
    exit_code = 3

async def on_startup(app):
    if trouble == "start":
        raise StartError(problem="no reason")
    if trouble == "worse":
        raise Worse(problem="no reason")

async def on_cleanup(app):
    print("cleaned up", flush=True)

def start():
    app = web.Application(middlewares=[errors_become_answers])
    app.router.add_get("/", quick)
    app.router.add_get("/waits", waits)
    app.router.add_get("/endless", endless)
    app.on_startup.append(on_startup)
    app.on_shutdown.append(on_shutdown)
    app.on_cleanup.append(on_cleanup)
    return app

settings = SimpleNamespace(host=host, port=int(port), log_level=level)
sys.exit(serving.run("tiny", start, settings))
"""

Process = asyncio.subprocess.Process


@contextlib.asynccontextmanager
async def running(
    host: str = "127.0.0.1", port: int = 0, level: str = "INFO", trouble: str = ""
) -> AsyncIterator[Process]:
    """A small program that is served as ours are."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-c", PROGRAM, host, str(port), level, trouble),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def listening(process: Process) -> int:
    """The port that it says it listens on."""
    assert process.stderr is not None
    line = (await process.stderr.readline()).decode()
    found = re.search(r"INFO listening on http://.+:(\d+)$", line)
    assert found, line
    return int(found[1])


async def ended(process: Process) -> tuple[int, list[str]]:
    """Its exit code, and what else it wrote to stderr."""
    _, errors = await process.communicate()
    assert process.returncode is not None
    return process.returncode, errors.decode().splitlines()


async def exchange(port: int, request: bytes) -> bytes:
    """What comes back for these bytes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    answer = await reader.read()
    writer.close()
    return answer


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_it_well(number: int) -> None:
    """Exit code 0, after it has cleaned up."""
    async with running() as process:
        await listening(process)
        process.send_signal(number)
        out, errors = await process.communicate()

    assert process.returncode == 0
    assert out == b"cleaned up\n"
    assert errors.decode().rstrip().endswith("INFO stopping")


async def test_a_signal_lets_waiting_callers_have_their_answer() -> None:
    """What ends when it stops is sent; what does not is cut after the grace."""
    async with running() as process:
        port = await listening(process)
        readers = []
        for path in (b"waits", b"endless"):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /%s HTTP/1.1\r\nHost: a\r\n\r\n" % path)
            await reader.readuntil(b"\r\n\r\n")
            readers.append((reader, writer))
        process.terminate()
        code, _ = await ended(process)
        rests = [await reader.read() for reader, _ in readers]
        for _, writer in readers:
            writer.close()

    assert code == 0
    assert rests == [b"c\r\nas it is now\r\n0\r\n\r\n", b""]


async def test_a_port_in_use_stops_the_start() -> None:
    """One line that names the setting and the address, exit code 2, no traceback."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        async with running(port=port) as process:
            code, errors = await ended(process)

    assert code == 2
    (line,) = errors
    assert line.startswith(f"tiny: HOST, PORT: 127.0.0.1:{port} cannot be listened on: ")
    assert "in use" in line


async def test_an_address_of_somebody_else_stops_the_start() -> None:
    """Likewise."""
    host = "192.0.2.1"
    async with running(host=host) as process:
        code, errors = await ended(process)

    assert code == 2
    (line,) = errors
    assert line.startswith(f"tiny: HOST, PORT: {host}:0 cannot be listened on: ")


@pytest.mark.parametrize(
    ("trouble", "code", "line"),
    [
        ("start", 2, "tiny: The program cannot start: no reason"),
        ("worse", 3, "tiny: Worse: no reason"),
    ],
)
async def test_trouble_at_the_start_is_one_line(trouble: str, code: int, line: str) -> None:
    """And the exit code of that trouble."""
    async with running(trouble=trouble) as process:
        assert await ended(process) == (code, [line])


async def test_an_ipv6_address_is_logged_as_a_url() -> None:
    """In brackets, so that it can be used as it stands."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(socket.create_server(("::1", 0), family=socket.AF_INET6))
        except OSError:
            pytest.skip("there is no IPv6 here")
    async with running(host="::1") as process:
        assert process.stderr is not None
        line = (await process.stderr.readline()).decode()

    assert re.search(r"listening on http://\[::1\]:\d+$", line)


async def test_it_may_open_as_many_files_as_the_system_allows() -> None:
    """Its soft limit is the hard one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with running() as process:
        port = await listening(process)
        answer = await exchange(port, b"GET / HTTP/1.0\r\n\r\n")

    assert answer.endswith(f"\r\n\r\n{hard} {hard}".encode())


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\nbroken header\r\n\r\n",
        b"GET / HTTP/9\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
    ],
    ids=["header", "version", "TLS", "long"],
)
async def test_a_request_that_is_not_http_is_no_event(garbage: bytes) -> None:
    """It is answered, and nothing is logged: a caller cannot fill the log."""
    async with running() as process:
        port = await listening(process)
        answer = await exchange(port, garbage)
        process.terminate()
        code, errors = await ended(process)

    assert answer.startswith(b"HTTP/1.")
    assert b" 400 " in answer.split(b"\r\n")[0]
    assert code == 0
    assert [line.partition("INFO ")[2] for line in errors] == ["stopping"]


async def test_requests_are_logged_at_debug_only() -> None:
    """There, with all that is wrong with them."""
    for level, logged in (("INFO", False), ("DEBUG", True)):
        async with running(level=level) as process:
            assert process.stderr is not None
            lines: list[str] = []
            while not lines or "listening" not in lines[-1]:
                lines.append((await process.stderr.readline()).decode())
            port = int(lines[-1].rpartition(":")[2])
            await exchange(port, b"GET /found-in-the-log HTTP/1.0\r\n\r\n")
            process.terminate()
            _, errors = await ended(process)

        assert any("found-in-the-log" in line for line in errors) is logged


LOGS = """
import asyncio, logging, sys
from orchestrator_shared.serving import set_up_log
set_up_log("INFO")
log = logging.getLogger("some")

async def main():
    log.info("first\\nsecond")
    log.info("third")
    print("not yet", file=sys.stderr)
    await asyncio.sleep(0)
    print("by now", file=sys.stderr)

asyncio.run(main())
log.info("at once")
print("after it", file=sys.stderr)
"""


def test_the_lines_of_one_turn_are_written_together() -> None:
    """Each with its time and level; where there is no loop, at once."""
    done = subprocess.run(
        [sys.executable, "-c", LOGS], capture_output=True, text=True, check=True
    ).stderr.splitlines()

    assert done[0] == "not yet"
    for line, said in zip(done[1:4], ("first", "second", "third"), strict=True):
        assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO " + said, line)
    assert done[4] == "by now"
    assert done[5].endswith(" INFO at once")
    assert done[6] == "after it"


def _quiet(script: str) -> str:
    return re.sub(r"print\(.*\)", "pass", script)


def test_a_log_that_nobody_takes_stops_nothing() -> None:
    """The disk of the log is full: what is said is lost, and everything else goes on."""
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", _quiet(LOGS)], stderr=full, check=False, timeout=30
        )
    assert done.returncode == 0
