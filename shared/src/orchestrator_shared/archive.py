"""A directory becomes a zip: streamed, in constant memory, and never anything from outside it."""

import asyncio
import errno
import hashlib
import os
import stat
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from isal import isal_zlib
from stream_zip import NO_COMPRESSION_64, ZIP_64, Method, stream_zip

from orchestrator_shared.protocol import RESERVED_NAME

#: Fast, and nearly as small as zlib's default on the text formats of structural biology.
DEFLATE_LEVEL: Final = 2
READ_SIZE: Final = 256 * 1024
#: How much is tried (bytes, at the start, the middle and the end) to see whether a file shrinks.
SAMPLE_SIZE: Final = 32 * 1024
#: A file whose samples stay above this share of their size is stored as it is.
SHRINKS_BELOW: Final = 0.97

_Member = tuple[str, datetime, int, Method, Iterator[bytes]]


@dataclass(frozen=True)
class Packed:
    """A zip on disk: bytes, and SHA-256 in hex."""

    size: int
    sha256: str


def _deflater() -> Any:
    return isal_zlib.compressobj(level=DEFLATE_LEVEL, wbits=-15)


def _modified(status: os.stat_result) -> datetime:
    # The DOS fields of a zip begin in 1980, the extended ones end in 2038.
    return datetime.fromtimestamp(min(max(status.st_mtime, 315_619_200), 2_147_400_000), UTC)


def _chunks(descriptor: int) -> Iterator[bytes]:
    while chunk := os.read(descriptor, READ_SIZE):
        yield chunk


def _shrinks(descriptor: int, size: int) -> bool:
    offsets = {0, max(0, size // 2 - SAMPLE_SIZE // 2), max(0, size - SAMPLE_SIZE)}
    sample = b"".join(os.pread(descriptor, SAMPLE_SIZE, offset) for offset in sorted(offsets))
    deflater = _deflater()
    shrunk = len(deflater.compress(sample)) + len(deflater.flush())
    return shrunk < SHRINKS_BELOW * len(sample)


def _method(descriptor: int, size: int, live: bool) -> Method:
    """Deflated where it shrinks; stored else, which needs a pass for the checksum first.

    A file that may still be written to is deflated in any case: its size and checksum then
    follow its content, whatever that has become.
    """
    if live or _shrinks(descriptor, size):
        return ZIP_64
    checksum = length = 0
    for chunk in _chunks(descriptor):
        checksum = isal_zlib.crc32(chunk, checksum)
        length += len(chunk)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return NO_COMPRESSION_64(length, checksum)


def _open_below(root: int, path: str) -> int:
    """Open a file below the directory `root`, following no link on the way.

    A job that still runs may put a link in the place of a directory at any moment.
    """
    *folders, name = path.split("/")
    current = os.dup(root)
    try:
        for folder in folders:
            below = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=current)
            os.close(current)
            current = below
        # O_NONBLOCK: a FIFO put in its place does not hold us up.
        return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=current)
    finally:
        os.close(current)


class _Walk:
    """The members of one zip, in the order of their names, and what was left out and why."""

    def __init__(self, root: Path, live: bool) -> None:
        self._root = root
        self._real = os.path.realpath(root)
        self._live = live
        self._skipped: list[str] = []

    def _skip(self, name: str, why: str) -> None:
        shown = name.encode(errors="surrogateescape").decode(errors="backslashreplace")
        self._skipped.append(f"{shown}\t{why}\n")

    def _inside(self, path: str) -> str | None:
        """Where a link below the root leads, as a path below the root; None if outside it."""
        target = os.path.realpath(os.path.join(self._root, path))  # noqa: PTH118
        return os.path.relpath(target, self._real) if target.startswith(self._real + "/") else None

    def _file(self, root: int, name: str, path: str) -> Iterator[_Member]:
        try:
            descriptor = _open_below(root, path)
        except OSError as error:
            gone = error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
            self._skip(name, "is gone" if gone else f"cannot be read: {error.strerror}")
            return
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                self._skip(name, "is not a file")
                return
            method = _method(descriptor, status.st_size, self._live)
            yield name, _modified(status), status.st_mode, method, _chunks(descriptor)
        finally:
            os.close(descriptor)

    def _link(self, root: int, name: str) -> Iterator[_Member]:
        target = self._inside(name)
        full = os.path.join(self._root, name)  # noqa: PTH118 - names may be no UTF-8
        if target is None:
            self._skip(name, "a link that leads out of the working directory")
        elif target.split("/")[0] == RESERVED_NAME:
            self._skip(name, f"a link to {RESERVED_NAME}")
        elif not os.path.lexists(os.path.realpath(full)):
            self._skip(name, "a link that leads nowhere")
        elif os.path.isdir(full):  # noqa: PTH112
            self._skip(name, "a link to a directory")
        else:
            yield from self._file(root, name, target)

    def _entry(self, root: int, name: str, mode: int) -> Iterator[_Member]:
        kinds: dict[int, str] = {
            stat.S_IFIFO: "a FIFO",
            stat.S_IFSOCK: "a socket",
            stat.S_IFBLK: "a device",
            stat.S_IFCHR: "a device",
        }
        if name.split("/")[0] == RESERVED_NAME:
            self._skip(name, "a reserved name")
        elif not _is_utf8(name):
            self._skip(name, "a name that is not UTF-8")
        elif stat.S_ISLNK(mode):
            yield from self._link(root, name)
        elif stat.S_ISDIR(mode):
            yield from self._folder(root, name)
        elif stat.S_ISREG(mode):
            yield from self._file(root, name, name)
        else:
            self._skip(name, kinds.get(stat.S_IFMT(mode), "is not a file"))

    def _folder(self, root: int, name: str) -> Iterator[_Member]:
        """A directory, and what it holds; `name` is empty for the root."""
        try:
            descriptor = _open_below(root, name) if name else os.dup(root)
            try:
                status = os.fstat(descriptor)
                with os.scandir(descriptor) as entries:
                    found = [
                        (entry.name, entry.stat(follow_symlinks=False).st_mode) for entry in entries
                    ]
            finally:
                os.close(descriptor)
        except OSError as error:
            self._skip(name or ".", f"cannot be read: {error.strerror}")
            return
        if name:
            yield name + "/", _modified(status), status.st_mode, NO_COMPRESSION_64(0, 0), iter(())
        for below, mode in sorted(found):
            yield from self._entry(root, f"{name}/{below}" if name else below, mode)

    def members(self, extra: Mapping[str, Path | bytes]) -> Iterator[_Member]:
        """Everything below the root, then our own entries, then the list of what was left out."""
        try:
            root = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            self._skip(".", "the working directory is gone")
        else:
            try:
                yield from self._folder(root, "")
            finally:
                os.close(root)
        for name, content in extra.items():
            yield from self._extra(f"{RESERVED_NAME}/{name}", content)
        if self._skipped:
            content = "".join(self._skipped).encode()
            yield from self._extra(f"{RESERVED_NAME}/skipped.txt", content)

    def _extra(self, name: str, content: Path | bytes) -> Iterator[_Member]:
        if isinstance(content, bytes):
            yield name, datetime.now(UTC), stat.S_IFREG | 0o600, ZIP_64, iter((content,))
        elif content.exists():
            folder = os.open(content.parent, os.O_PATH | os.O_DIRECTORY)
            try:
                yield from self._file(folder, name, content.name)
            finally:
                os.close(folder)


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def zip_directory(
    root: Path, extra: Mapping[str, Path | bytes], *, live: bool = False
) -> Iterator[bytes]:
    """The zip of a working directory, chunk by chunk (ZIP64; Deflate where it helps).

    `extra` are entries of our own for the folder `.orchestrator`: their names, and a file or
    bytes. With `live` the files may change while they are read. What cannot be packed is named
    in `.orchestrator/skipped.txt`.

    Raises:
        OSError: a file cannot be read to its end.
        stream_zip.ZipError: a file changed while it was packed, without `live`.
    """
    return iter(
        stream_zip(
            _Walk(root, live).members(extra), chunk_size=READ_SIZE, get_compressobj=_deflater
        )
    )


def pack_directory(root: Path, extra: Mapping[str, Path | bytes], target: Path) -> Packed:
    """Write the zip of a working directory to a file, and say its size and digest.

    Raises:
        OSError: the disk is full or cannot be read or written; nothing is left at `target`.
    """
    digest = hashlib.sha256()
    size = 0
    temporary = target.with_name(target.name + ".new")
    try:
        with open(temporary, "wb") as file:
            for chunk in zip_directory(root, extra):
                file.write(chunk)
                digest.update(chunk)
                size += len(chunk)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return Packed(size, digest.hexdigest())


async def in_thread(make: Callable[[], Iterator[bytes]]) -> AsyncIterator[bytes]:
    """The chunks of a blocking iterator, each taken in a thread."""
    chunks = make()
    while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
        yield chunk
