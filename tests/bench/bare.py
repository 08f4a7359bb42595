"""The floors of the case upload: handlers with nothing behind them, in a process of their own.

PYTHONPATH=tests .venv/bin/python -m bench.bare FOLDER
"""

import itertools
import os
import socket
import sys
from pathlib import Path

from aiohttp import web

_numbers = itertools.count()


async def bare(request: web.Request) -> web.Response:
    """Reads the body, answers JSON."""
    await request.read()
    return web.json_response({"id": next(_numbers)}, status=201)


async def fsynced(request: web.Request) -> web.Response:
    """Likewise, with the body in a file that is durable."""
    body = await request.read()
    number = next(_numbers)
    descriptor = os.open(Path(sys.argv[1]) / str(number), os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, body)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return web.json_response({"id": number}, status=201)


def main() -> None:
    """Serve on a free port, which is printed first."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=1024)
    print(listening.getsockname()[1], flush=True)
    app = web.Application()
    app.router.add_post("/bare", bare)
    app.router.add_post("/fsynced", fsynced)
    web.run_app(app, sock=listening, print=None, access_log=None)


if __name__ == "__main__":
    main()
