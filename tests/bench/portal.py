"""A portal that costs next to nothing itself: nobody is to measure how requests are made."""

import asyncio
from collections.abc import Iterable, Iterator

_BOUNDARY = "bench"


def upload_request(path: str, script: bytes, user_id: int = 1) -> bytes:
    """The request that uploads one run.sh."""
    parts = {
        '"user_id"': str(user_id).encode(),
        '"service"': b"example",
        '"file"; filename="run.sh"': script,
    }
    begin = f"--{_BOUNDARY}\r\nContent-Disposition: form-data; name=".encode()
    body = b"".join(
        begin + name.encode() + b"\r\n\r\n" + value + b"\r\n" for name, value in parts.items()
    )
    body += f"--{_BOUNDARY}--\r\n".encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Length: {len(body)}\r\n"
        f"Content-Type: multipart/form-data; boundary={_BOUNDARY}\r\n\r\n"
    )
    return head.encode() + body


async def send_all(port: int, requests: Iterable[bytes], connections: int) -> None:
    """Send them over so many kept connections, each as soon as one before it is answered."""
    left = iter(requests)
    await asyncio.gather(*(_send(port, left) for _ in range(connections)))


async def _send(port: int, left: Iterator[bytes]) -> None:
    connection = await Connection.open(port)
    for request in left:
        await connection.send(request)
    await connection.close()


class Connection:
    """A kept connection to the server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, port: int) -> "Connection":
        """Connect."""
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def get(self, path: str) -> bytes:
        """The body of an answer."""
        return await self.send(f"GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n".encode())

    async def send(self, request: bytes) -> bytes:
        """Send a request; gives the body of its answer back."""
        self._writer.write(request)
        head = await self._reader.readuntil(b"\r\n\r\n")
        if head[9:12] not in (b"200", b"201"):
            raise RuntimeError(head.decode())
        length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
        return await self._reader.readexactly(int(length))

    async def close(self) -> None:
        """Let go of it."""
        self._writer.close()
        await self._writer.wait_closed()
