"""An upload: from the stream of a multipart request to files in memory or on disk."""

import asyncio
import contextlib
import hashlib
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final

import aiohttp
from aiohttp import web
from aiohttp.helpers import parse_mimetype
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser

from orchestrator_shared.digests import check_digest, read_digest
from orchestrator_shared.errors import BadUpload, Silent, TooLarge
from orchestrator_shared.folders import fsync_file, fsync_folder, remove_tree, write_new
from orchestrator_shared.multipart import check_name, read_disposition
from orchestrator_shared.protocol import INLINE_FILES_LIMIT, INLINE_LIMIT, SILENCE_LIMIT

#: What a text field may have (bytes), and how many there may be.
FIELD_LIMIT: Final = 64 * 1024
FIELDS_LIMIT: Final = 100
#: How many files there may be: what is known of each is kept in memory.
FILES_LIMIT: Final = 100_000
#: How much of a large upload is gathered (bytes) before it is written in one go.
WRITE_SIZE: Final = 512 * 1024
#: Room for a name of 255 bytes, each escaped, twice over.
_HEADER_LIMIT: Final = 8192

_numbers = itertools.count(1)

#: Reads the parameters of a Content-Disposition.
ReadDisposition = Callable[[bytes], Mapping[str, str]]


@dataclass
class ReceivedFile:
    """One file of an upload."""

    name: str
    size: int = 0
    sha256: str = ""
    #: The SHA-256 that its sender says it has; None if it says nothing.
    declared: str | None = None


@dataclass
class Upload:
    """What an upload brought: its fields and its files.

    The files' bytes stand in `body`, in order, where they are few; else in files in `folder`.
    """

    fields: dict[str, str] = field(default_factory=dict)
    files: list[ReceivedFile] = field(default_factory=list)
    body: bytes | None = None
    folder: Path | None = None

    @property
    def total(self) -> int:
        """The bytes of all files."""
        return sum(file.size for file in self.files)

    def manifest(self) -> list[dict[str, str | int]]:
        """Name, size and digest of each file, in order."""
        return [
            {"name": file.name, "size": file.size, "sha256": file.sha256} for file in self.files
        ]

    def discard(self) -> None:
        """Remove what lies on disk; where the files were moved away there is nothing to do."""
        if self.folder is not None and self.folder.exists():
            remove_tree(self.folder)

    def make_durable(self) -> None:
        """fsync each file, and the folder that names them."""
        if self.folder is None:
            return
        for file in self.files:
            fsync_file(self.folder / file.name)
        fsync_folder(self.folder)


class _Receiver:
    """The callbacks of the parser: parts become fields and files.

    They only collect; the caller writes what has gathered in a thread (`flush`), so that the
    event loop never waits for a disk. A caller that is cancelled leaves that thread behind:
    `give_up` waits for it, or keeps it from beginning.
    """

    def __init__(self, folder: Path, limit: int, inline_limit: int, read: ReadDisposition) -> None:
        self.upload = Upload()
        self.finished = False
        self.pending = 0
        self._folder = folder
        self._limit = limit
        self._inline_limit = inline_limit
        self._read = read
        self._total = 0
        self._names: set[str] = set()
        self._pieces: list[tuple[int, bytes]] = []
        self._header_name = b""
        self._header_value = b""
        self._disposition = b""
        self._digest = b""
        self._field: str | None = None
        self._text = b""
        self._in_file = False
        self._open: tuple[ReceivedFile, BinaryIO, hashlib._Hash] | None = None
        self._writing = threading.RLock()
        self._given_up = False

    def on_part_begin(self) -> None:
        self._disposition = self._digest = b""
        self._text = b""
        self._in_file = False
        self._field = None

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def on_header_end(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = self._header_value
        elif self._header_name.lower() == b"repr-digest":
            self._digest = self._header_value
        self._header_name = self._header_value = b""

    def on_headers_finished(self) -> None:
        found = self._read(self._disposition)
        if "filename" in found:
            name = check_name(found["filename"])
            if name in self._names:
                raise BadUpload(problem=f"two files have the name '{name}'")
            if len(self._names) >= FILES_LIMIT:
                raise BadUpload(problem=f"it has more than {FILES_LIMIT} files")
            self._names.add(name)
            self.upload.files.append(ReceivedFile(name, declared=read_digest(self._digest)))
            self._pieces.append((len(self.upload.files) - 1, b""))
            self._in_file = True
        elif "name" in found:
            if len(self.upload.fields) >= FIELDS_LIMIT:
                raise BadUpload(problem=f"it has more than {FIELDS_LIMIT} fields")
            self._field = found["name"]
        else:
            raise BadUpload(problem="a part has neither a name nor a file name")

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._in_file:
            self._total += end - start
            if self._total > self._limit:
                raise TooLarge(limit=self._limit)
            self._pieces.append((len(self.upload.files) - 1, data[start:end]))
            self.pending += end - start
        else:
            self._text += data[start:end]
            if len(self._text) > FIELD_LIMIT:
                raise BadUpload(
                    problem=f"the field '{self._field}' has more than {FIELD_LIMIT} bytes"
                )

    def on_part_end(self) -> None:
        if self._field is None:
            return
        if self._field in self.upload.fields:
            raise BadUpload(problem=f"the field '{self._field}' is given twice")
        try:
            self.upload.fields[self._field] = self._text.decode()
        except UnicodeDecodeError as error:
            raise BadUpload(problem=f"the field '{self._field}' is not UTF-8") from error

    def on_end(self) -> None:
        self.finished = True

    @property
    def spilled(self) -> bool:
        """Whether the files are too many bytes, or too many, to be kept in memory."""
        return self._total > self._inline_limit or len(self.upload.files) > INLINE_FILES_LIMIT

    def keep_inline(self) -> None:
        """Take the few bytes of a small upload as its body."""
        parts: list[list[bytes]] = [[] for _ in self.upload.files]
        for index, piece in self._pieces:
            parts[index].append(piece)
        bodies = [b"".join(part) for part in parts]
        for file, body in zip(self.upload.files, bodies, strict=True):
            file.size = len(body)
            file.sha256 = hashlib.sha256(body).hexdigest()
        self.upload.body = b"".join(bodies)

    def flush(self) -> None:
        """Write what has gathered to disk: runs in a thread."""
        with self._writing:
            if self._given_up:
                return
            if self.upload.folder is None:
                self._folder.mkdir(mode=0o700, parents=True)
                self.upload.folder = self._folder
            for index, piece in self._pieces:
                received = self.upload.files[index]
                if self._open is None or self._open[0] is not received:
                    self._close()
                    opened = open(self._folder / received.name, "xb")  # noqa: SIM115 - until its end
                    self._open = (received, opened, hashlib.sha256())
                _, file, digest = self._open
                file.write(piece)
                digest.update(piece)
                received.size += len(piece)
            self._pieces.clear()
            self.pending = 0

    def finish(self) -> None:
        """Write the rest: runs in a thread."""
        with self._writing:
            self.flush()
            self._close()

    def give_up(self) -> None:
        """Remove what was written: runs in a thread."""
        with self._writing:
            self._given_up = True
            # What stands in its buffer may find the disk full.
            with contextlib.suppress(OSError):
                self._close()
            self.upload.discard()

    def _close(self) -> None:
        if self._open is not None:
            received, file, digest = self._open
            self._open = None
            received.sha256 = digest.hexdigest()
            file.close()


def _parser(request: web.Request, receiver: _Receiver) -> MultipartParser:
    mime = parse_mimetype(request.headers.get("Content-Type", ""))
    boundary = mime.parameters.get("boundary", "")
    form = mime.type == "multipart" and mime.subtype == "form-data"
    if not form or not boundary or not boundary.isascii():
        raise BadUpload(problem="it is not multipart/form-data with a boundary")
    return MultipartParser(
        boundary,
        {
            "on_part_begin": receiver.on_part_begin,
            "on_header_field": receiver.on_header_field,
            "on_header_value": receiver.on_header_value,
            "on_header_end": receiver.on_header_end,
            "on_headers_finished": receiver.on_headers_finished,
            "on_part_data": receiver.on_part_data,
            "on_part_end": receiver.on_part_end,
            "on_end": receiver.on_end,
        },
        max_header_size=_HEADER_LIMIT,
    )


async def receive_upload(
    request: web.Request,
    folder: Path,
    limit: int,
    inline_limit: int = INLINE_LIMIT,
    *,
    read: ReadDisposition = read_disposition,
) -> Upload:
    """Read a multipart request to its end, in constant memory.

    Files of `inline_limit` bytes in sum at most come back in `Upload.body`; larger ones lie in a
    new folder below `folder`, which the caller moves away or discards, and are not yet durable.
    `limit` is the most that all files may have (bytes), `read` finds the name of each.

    Raises:
        BadUpload: it is malformed, cut short, has a name that cannot be used, or a name twice.
        TooLarge: the files have more than `limit` bytes.
        DamagedOnTheWay: a file does not have the Repr-Digest of its part.
        Silent: no byte came for SILENCE_LIMIT seconds.
        OSError: the disk is full, or cannot be written.
    """
    receiver = _Receiver(folder / f"upload-{next(_numbers)}", limit, inline_limit, read)
    try:
        parser = _parser(request, receiver)
        if request.content.is_eof():
            # A small one has arrived as a whole: nothing is waited for.
            parser.write(request.content.read_nowait())
        else:
            await _parse(request.content, parser, receiver)
        if not receiver.finished:
            raise BadUpload(problem="its multipart body is cut short")
        if receiver.spilled:
            await asyncio.to_thread(receiver.finish)
        else:
            receiver.keep_inline()
        for file in receiver.upload.files:
            check_digest(file.name, file.sha256, file.declared)
    except BaseException as error:
        await asyncio.to_thread(receiver.give_up)
        if isinstance(error, TimeoutError):
            raise Silent(seconds=SILENCE_LIMIT) from error
        if isinstance(error, FormParserError):
            raise BadUpload(problem=f"it is not well-formed multipart ({error})") from error
        if isinstance(error, web.RequestPayloadError):
            raise BadUpload(problem=f"its body is not well-formed HTTP ({error})") from error
        raise
    return receiver.upload


async def _parse(
    content: aiohttp.StreamReader, parser: MultipartParser, receiver: _Receiver
) -> None:
    """Parse what arrives, and write it where it is much."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(SILENCE_LIMIT) as silence:
        while chunk := await content.readany():
            parser.write(chunk)
            if receiver.spilled and receiver.pending >= WRITE_SIZE:
                silence.reschedule(None)
                await asyncio.to_thread(receiver.flush)
            silence.reschedule(loop.time() + SILENCE_LIMIT)


def split_inline(files: Iterable[tuple[str, int]], body: bytes) -> Iterator[tuple[str, bytes]]:
    """Take apart what a small job carries in its body: name and size of each file, in order, give
    its name and content."""
    start = 0
    for name, size in files:
        yield name, body[start : start + size]
        start += size


def write_inline(folder: str, files: Iterable[tuple[str, int]], body: bytes) -> None:
    """Write the files that a small job carries in its body: name and size of each, in order."""
    for name, content in split_inline(files, body):
        write_new(f"{folder}/{name}", content)
