"""The requests to a client of the original, and what its answers mean."""

import asyncio
import hashlib
import json
import lzma
import re
import struct
import uuid
import zipfile
import zlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import aiohttp
from aiohttp import ClientTimeout, hdrs

from orchestrator_server.clients.outcomes import (
    Damaged,
    NotReceived,
    OutcomeUnknown,
    PayloadGone,
    Refused,
    RefusedForNow,
)
from orchestrator_server.clients.requests import REFUSED_FOR_GOOD, UNREACHABLE, WRITE_SIZE
from orchestrator_server.config import ClientAddress
from orchestrator_server.store.job import JobInput
from orchestrator_shared.errors import ClientUnreachable, Transient
from orchestrator_shared.messages import PackedResult
from orchestrator_shared.multipart import CHUNK
from orchestrator_shared.protocol import H_PROTOCOL, HEALTH, LOAD, PROTOCOL, SILENCE_LIMIT
from orchestrator_shared.uploads import split_inline

#: The file that a submit carries beside the job's own: whose it is.
MARKER: Final = ".orchestrator.job"
#: Where the exit trap of a run.sh leaves its exit status.
EXIT: Final = ".orchestrator.exit"
#: What a result is called by version 2, and by version 1.
ZIP_TYPES: Final = ("application/zip", "application/octet-stream")
#: With these it says that there is no directory of a payload.
NO_FILES: Final = (404, 500)
#: After how many bytes it is looked again whether there is room.
ROOM_STEP: Final = 64 * 1024 * 1024
#: For requests that are answered at once.
SHORT: Final = ClientTimeout(total=10)
#: It answers a submit once it has written all files, and a question for a payload once it has
#: packed it.
_LONG: Final = ClientTimeout(total=None, sock_connect=5, sock_read=600)
#: How much is read of an answer that is to be short, or whose beginning is enough (bytes).
HEAD: Final = 64 * 1024


@dataclass(frozen=True)
class Answer:
    """An answer to /retrieve. Of a zip only its size (bytes; 0: not told) is known."""

    status: int
    content_type: str
    size: int
    body: bytes

    @property
    def is_zip(self) -> bool:
        """Whether it is a result, and no page of a proxy."""
        return self.status == 200 and self.content_type in ZIP_TYPES

    @property
    def shows_payload(self) -> bool:
        """Whether there is such a payload."""
        known = self.status == 200 and self.content_type == "application/json"
        return self.is_zip or self.status == 202 or (known and bool(read_field(self.body, "id")))

    def is_own_404(self, version: str) -> bool:
        """Whether it is the client that says 404, and no proxy."""
        if self.status != 404:
            return False
        return read_field(self.body, "id") == 0 if version == "2" else not self.body


class NoZip(ClientUnreachable):
    """The client at {client} has no zip of it ({problem})."""


class AnothersFiles(PayloadGone):
    """Payload {payload} came with the files of another job; they were not kept."""

    spares = True


class NobodysFiles(PayloadGone):
    """Payload {payload} came without the file .orchestrator.job, which says whose it is; as ids
    began again at its client, that may be anybody."""


class Replaced(ClientUnreachable):
    """The client at {client} is one of ours by now ({problem})."""


async def find_version(session: aiohttp.ClientSession, base: str) -> str | None:
    """Whether an original client answers there, and of which version: `1` or `2`.

    Raises:
        aiohttp.ClientError, OSError, TimeoutError: nobody answers.
    """
    own = {H_PROTOCOL: str(PROTOCOL)}
    async with session.get(base + HEALTH, timeout=SHORT, headers=own) as response:
        if H_PROTOCOL in response.headers:
            return None
        version = {404: "1", 200: "2"}.get(response.status)
        health = await read_head(response)
    if version is None or (version == "2" and read_field(health, "protocol") is not None):
        return None
    try:
        await ask_load(session, base)
    except ClientUnreachable:
        return None
    return version


async def ask(session: aiohttp.ClientSession, url: str) -> Answer:
    """Ask for a payload, and read no zip."""
    async with session.get(url, timeout=_LONG) as response:
        zipped = response.status == 200 and response.content_type in ZIP_TYPES
        body = b"" if zipped else await read_head(response)
        if zipped:
            response.close()
        size = response.content_length or 0
        return Answer(response.status, response.content_type, size, body)


async def kill(session: aiohttp.ClientSession, address: ClientAddress, payload: int) -> int:
    """Ask for the end of a payload; gives back the status of the answer."""
    async with session.post(f"{address.kill}/{payload}", timeout=SHORT) as response:
        return response.status


async def ask_load(session: aiohttp.ClientSession, base: str) -> float:
    """GET /load: a bare number.

    Raises:
        Replaced: it is a client of ours that answers.
        ClientUnreachable: it answers something else.
    """
    async with session.get(base + LOAD, timeout=SHORT) as response:
        if H_PROTOCOL in response.headers:
            raise Replaced(client=base, problem="it signs its answers")
        body = await read_head(response)
        try:
            if response.status == 200:
                return float(body)
        except ValueError:
            pass
        raise ClientUnreachable(client=base, problem=f"{LOAD} answers {response.status}")


async def read_head(response: aiohttp.ClientResponse) -> bytes:
    """An answer, or as much of it as is looked at."""
    start = b""
    while len(start) < HEAD and (chunk := await response.content.read(HEAD - len(start))):
        start += chunk
    return start


def read_field(body: bytes, name: str) -> Any:
    """A field of a JSON object; None if it is none, or has none."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return found.get(name) if isinstance(found, dict) else None


async def post_job(
    session: aiohttp.ClientSession,
    address: ClientAddress,
    marker: bytes,
    job_input: JobInput,
    folder: Path,
) -> int:
    """Send the files of a job, and its marker; gives the id of the payload, and reads no further.

    Raises:
        SubmitError: it was not taken, or nobody knows.
    """
    boundary = uuid.uuid4().hex
    files: list[tuple[str, int, bytes | Path]] = [(MARKER, len(marker), marker)]
    if job_input.body is not None:
        files += [(n, len(b), b) for n, b in split_inline(job_input.sizes, job_input.body)]
    else:
        files += [(file.name, file.size, folder / file.name) for file in job_input.files]
    end = f"--{boundary}--\r\n".encode()
    length = sum(len(_part_head(boundary, name)) + size + 2 for name, size, _ in files) + len(end)
    written = False
    loop = asyncio.get_running_loop()
    silence = asyncio.timeout(None)

    async def body() -> AsyncIterator[bytes]:
        nonlocal written
        for name, _, content in files:
            yield _part_head(boundary, name)
            chunks = _once(content) if isinstance(content, bytes) else read_chunks(content)
            async for chunk in chunks:
                # As in Requests.submit.
                silence.reschedule(loop.time() + SILENCE_LIMIT)
                yield chunk
            yield b"\r\n"
        silence.reschedule(None)
        yield end
        written = True

    headers = {
        hdrs.CONTENT_TYPE: f"multipart/form-data; boundary={boundary}",
        hdrs.CONTENT_LENGTH: str(length),
    }
    try:
        async with (
            silence,
            session.post(address.submit, data=body(), headers=headers, timeout=_LONG) as response,
        ):
            start = await read_head(response)
            # The rest is every byte of the upload, as a number each.
            response.close()
    except UNREACHABLE as error:
        problem = f"{address.base}: {error or 'no answer'}"
        if written and not isinstance(error, aiohttp.ClientConnectorError):
            raise OutcomeUnknown(problem=problem) from error
        raise NotReceived(problem=problem) from error
    message = f"its client answers HTTP {response.status}"
    if response.status == 200:
        match = re.match(rb'\s*\{\s*"id"\s*:\s*(\d+)\s*[,}]', start)
        if match is None:
            raise OutcomeUnknown(problem=f"{address.base}: it names no payload")
        return int(match[1])
    if response.status in REFUSED_FOR_GOOD:
        raise Refused(message=message)
    if response.status >= 500 and response.status not in (503, 507):
        raise OutcomeUnknown(problem=message)
    raise RefusedForNow(message, disk=response.status == 507)


def _part_head(boundary: str, name: str) -> bytes:
    """The head of a part, as an original server writes it."""
    plain = re.fullmatch(r"[!-~]+", name) and not re.search(r"[%\"\\]", name)
    part = f'name="{name}"' if plain else f"name*=utf-8''{quote(name, safe='')}"
    filename = name.replace('"', '\\"')
    return (
        f'--{boundary}\r\nContent-Disposition: form-data; {part}; filename="{filename}"\r\n\r\n'
    ).encode()


async def download(
    session: aiohttp.ClientSession,
    url: str,
    target: Path,
    check_room: Callable[[int], None],
) -> PackedResult:
    """Write a zip into a file, as it comes, while there is room for it.

    Raises:
        ClientUnreachable: it does not come.
        NoZip: there is none.
        Transient: it cannot be written here.
    """
    digest = hashlib.sha256()
    size = checked = 0
    loop = asyncio.get_running_loop()
    try:
        with await asyncio.to_thread(open, target, "wb") as file:
            async with (
                session.get(url, timeout=_LONG) as response,
                asyncio.timeout(None) as silence,
            ):
                if response.status in NO_FILES or response.content_type == "application/json":
                    raise NoZip(client=url, problem=f"HTTP {response.status}")
                if response.status != 200 or response.content_type not in ZIP_TYPES:
                    problem = f"HTTP {response.status}, {response.content_type}"
                    raise ClientUnreachable(client=url, problem=problem)
                check_room(response.content_length or 0)
                silence.reschedule(loop.time() + SILENCE_LIMIT)
                async for chunk in response.content.iter_chunked(WRITE_SIZE):
                    if size - checked > ROOM_STEP:
                        checked = size
                        check_room(0)
                    try:
                        await asyncio.to_thread(file.write, chunk)
                    except OSError as error:
                        problem = f"it cannot be written: {error.strerror}"
                        raise Transient(problem=problem) from error
                    digest.update(chunk)
                    size += len(chunk)
                    silence.reschedule(loop.time() + SILENCE_LIMIT)
    except UNREACHABLE as error:
        raise ClientUnreachable(client=url, problem=str(error)) from error
    return PackedResult(size=size, sha256=digest.hexdigest())


def marker_of(server: str, job: int, attempt: int) -> bytes:
    """What says whose a working directory is."""
    return json.dumps({"server": server, "job": job, "attempt": attempt}).encode()


def inspect(zipped: Path, payload: int, expected: bytes, *, trusted: bool) -> int | None:
    """Read the whole zip, and look whose it is by its marker; gives the exit status that it has, if
    it has one. `trusted`: without a marker it is this job's.

    Raises:
        Damaged: it is none, or a byte of it is not as it was packed.
        AnothersFiles: it is another's.
        NobodysFiles: it does not say whose it is.
    """
    try:
        with zipfile.ZipFile(zipped) as opened:
            if opened.testzip() is not None:
                raise Damaged(payload=payload)
            marker, code = (_read_small(opened, name) for name in (MARKER, EXIT))
    except _NO_ZIP as error:
        raise Damaged(payload=payload) from error
    if marker != expected and not (marker is None and trusted):
        is_marker = marker is not None and read_field(marker, "attempt") is not None
        raise (AnothersFiles if is_marker else NobodysFiles)(payload=payload)
    code = (code or b"").strip()
    return int(code) if re.fullmatch(rb"[0-9]{1,3}", code) and int(code) < 256 else None


#: What zipfile raises for a zip that is damaged, encrypted, or of another kind.
_NO_ZIP: Final = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
    *(EOFError, OSError, ValueError, RuntimeError),
)


def _read_small(opened: zipfile.ZipFile, name: str) -> bytes | None:
    try:
        entry = opened.getinfo(name)
    except KeyError:
        return None
    return opened.read(entry) if entry.file_size <= HEAD else b""


async def _once(content: bytes) -> AsyncIterator[bytes]:
    yield content


async def read_chunks(path: Path) -> AsyncIterator[bytes]:
    """A file, chunk by chunk."""
    with open(path, "rb") as file:  # noqa: ASYNC230 - as in stream_body
        while chunk := await asyncio.to_thread(file.read, CHUNK):
            yield chunk
