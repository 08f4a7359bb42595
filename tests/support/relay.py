"""A wire between server and client that a test can cut, or make deaf in one direction."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

from aiohttp.test_utils import unused_port


class Relay:
    """Passes bytes on between those who connect here and one address."""

    def __init__(self, target: str) -> None:
        parts = urlsplit(target)
        self._target = (parts.hostname or "127.0.0.1", parts.port or 0)
        self._port = unused_port()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        #: Whether what the target says gets lost on the way.
        self.swallows_answers = False

    @property
    def base(self) -> str:
        """Where to connect to."""
        return f"http://127.0.0.1:{self._port}"

    async def mend(self) -> None:
        """Let connections through again."""
        self.swallows_answers = False
        if self._server is None:
            self._server = await asyncio.start_server(self._pass, "127.0.0.1", self._port)

    async def cut(self) -> None:
        """End every connection, and refuse new ones."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self._writers):
            writer.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            there, back = await asyncio.open_connection(*self._target)
            self._writers.add(back)
            await asyncio.gather(self._copy(reader, back, False), self._copy(there, writer, True))
            self._writers.discard(back)
        except OSError:
            writer.close()
        finally:
            self._writers.discard(writer)
            self._tasks.discard(task)

    async def _copy(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answers: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while chunk := await reader.read(65536):
                if not (answers and self.swallows_answers):
                    writer.write(chunk)
                    await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def running_relay(target: str) -> AsyncIterator[Relay]:
    """A wire to this address."""
    relay = Relay(target)
    await relay.mend()
    try:
        yield relay
    finally:
        await relay.cut()
