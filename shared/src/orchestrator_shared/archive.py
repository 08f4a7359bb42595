"""A directory becomes a zip: streamed, in constant memory, and never anything from outside it."""

import asyncio
import errno
import hashlib
import os
import re
import stat
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from isal import isal_zlib
from stream_zip import NO_COMPRESSION_64, ZIP_64, Method, ZipError, stream_zip

from orchestrator_shared.protocol import RESERVED_NAME

#: Fast, and nearly as small as zlib's default on the text formats of structural biology.
DEFLATE_LEVEL: Final = 2
READ_SIZE: Final = 256 * 1024
#: How much is tried (bytes, at the start, the middle and the end) to see whether a file shrinks.
SAMPLE_SIZE: Final = 32 * 1024
#: A file whose samples stay above this share of their size is stored as it is.
SHRINKS_BELOW: Final = 0.97
#: The most bytes that a zip can give to a name, which is a whole path in it.
NAME_LIMIT: Final = 0xFFFF

#: What a job can bring about, and packing again would not change. Any other error may pass: it
#: is raised, so that no file is left out for want of a descriptor.
_LEFT_OUT: Final[Mapping[int | None, str]] = {
    errno.ENOENT: "is gone",
    errno.ENOTDIR: "is gone",
    errno.ELOOP: "is gone",
    errno.ENXIO: "is not a file",
    errno.EACCES: "cannot be read: permission denied",
    errno.EPERM: "cannot be read: permission denied",
}

_FILE: Final = "a file"
_FOLDER: Final = "a directory"
_LINK: Final = "a link"
_KINDS: Final[Mapping[int, str]] = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFBLK: "a device",
    stat.S_IFCHR: "a device",
}

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


def _chunks(descriptor: int, size: int) -> Iterator[bytes]:
    """The first `size` bytes: what a job goes on to write might have no end."""
    while size and (chunk := os.read(descriptor, min(READ_SIZE, size))):
        size -= len(chunk)
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
    for chunk in _chunks(descriptor, size):
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


def _kind(entry: os.DirEntry[str]) -> str:
    """What an entry is, which the directory itself mostly tells without another call."""
    if entry.is_symlink():
        return _LINK
    if entry.is_dir(follow_symlinks=False):
        return _FOLDER
    if entry.is_file(follow_symlinks=False):
        return _FILE
    try:
        return _KINDS.get(stat.S_IFMT(entry.stat(follow_symlinks=False).st_mode), "is not a file")
    except FileNotFoundError:
        return "is gone"


def _list(root: int, path: str) -> tuple[os.stat_result, list[tuple[str, str]]]:
    """A directory below the root: its status, and the path and kind of each entry, in order."""
    descriptor = _open_below(root, path) if path else os.dup(root)
    try:
        with os.scandir(descriptor) as entries:
            found = sorted((entry.name, _kind(entry)) for entry in entries)
        prefix = path + "/" if path else ""
        return os.fstat(descriptor), [(prefix + name, kind) for name, kind in found]
    finally:
        os.close(descriptor)


class _Walk:
    """The members of one zip, in the order of their names, and what was left out and why."""

    def __init__(self, root: Path, live: bool) -> None:
        self._root = root
        self._real = os.path.realpath(root)
        self._live = live
        self._skipped: list[str] = []

    def _skip(self, name: str, why: str) -> None:
        shown = name.encode(errors="surrogateescape").decode(errors="backslashreplace")
        # One line each, whatever a job calls its files.
        shown = re.sub(r"[\0-\x1f\x7f]", lambda match: f"\\x{ord(match[0]):02x}", shown)
        self._skipped.append(f"{shown}\t{why}\n")

    def _skip_after(self, name: str, error: OSError) -> None:
        """Leave out what could not be opened, unless that may be otherwise the next time."""
        if error.errno not in _LEFT_OUT:
            raise error
        self._skip(name, _LEFT_OUT[error.errno])

    def _inside(self, path: str) -> str | None:
        """Where a link below the root leads, as a path below the root; None if outside it."""
        target = os.path.realpath(os.path.join(self._root, path))  # noqa: PTH118
        below = os.path.relpath(target, self._real)
        return None if below.split("/")[0] == ".." else below

    def _file(self, root: int, name: str, path: str) -> Iterator[_Member]:
        try:
            descriptor = _open_below(root, path)
        except OSError as error:
            self._skip_after(name, error)
            return
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                self._skip(name, "is not a file")
                return
            size = status.st_size
            method = _method(descriptor, size, self._live)
            yield name, _modified(status), status.st_mode, method, _chunks(descriptor, size)
        finally:
            os.close(descriptor)

    def _link(self, root: int, name: str) -> Iterator[_Member]:
        target = self._inside(name)
        full = os.path.join(self._root, name)  # noqa: PTH118 - names may be no UTF-8
        if target is None:
            self._skip(name, "a link that leads out of the working directory")
        elif target.split("/")[0] == RESERVED_NAME:
            self._skip(name, f"a link to {RESERVED_NAME}")
        elif not os.path.exists(full):  # noqa: PTH110
            self._skip(name, "a link that leads nowhere")
        elif os.path.isdir(full):  # noqa: PTH112
            self._skip(name, "a link to a directory")
        else:
            yield from self._file(root, name, target)

    def _folder(self, root: int, name: str, pending: list[tuple[str, str]]) -> Iterator[_Member]:
        """A directory; what it holds is put on `pending`. `name` is empty for the root."""
        try:
            status, found = _list(root, name)
        except OSError as error:
            self._skip_after(name or ".", error)
            return
        if name:
            yield name + "/", _modified(status), status.st_mode, NO_COMPRESSION_64(0, 0), iter(())
        pending.extend(reversed(found))

    def _tree(self, root: int) -> Iterator[_Member]:
        """Everything below the root.

        With a list of what is to come, not by recursion: a job can nest directories deeper than
        Python can nest calls.
        """
        pending = [("", _FOLDER)]
        while pending:
            name, kind = pending.pop()
            if name.split("/")[0] == RESERVED_NAME:
                self._skip(name, "a reserved name")
            elif not _is_utf8(name):
                self._skip(name, "a name that is not UTF-8")
            elif len(name.encode()) >= NAME_LIMIT:
                self._skip(name, "a path that is too long")
            elif kind == _FOLDER:
                yield from self._folder(root, name, pending)
            elif kind == _FILE:
                yield from self._file(root, name, name)
            elif kind == _LINK:
                yield from self._link(root, name)
            else:
                self._skip(name, kind)

    def members(self, extra: Mapping[str, Path | bytes]) -> Iterator[_Member]:
        """Everything below the root, then our own entries, then the list of what was left out."""
        try:
            # A job may have put a link in the place of its working directory too.
            root = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError as error:
            self._skip_after(".", error)
        else:
            try:
                yield from self._tree(root)
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


def _gathered(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in chunks worth a thread or a write of their own.

    stream_zip ends a chunk at each member, however small.
    """
    pieces: list[bytes] = []
    length = 0
    for chunk in chunks:
        pieces.append(chunk)
        length += len(chunk)
        if length >= READ_SIZE:
            yield b"".join(pieces)
            pieces, length = [], 0
    if pieces:
        yield b"".join(pieces)


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
    members = _Walk(root, live).members(extra)
    return _gathered(stream_zip(members, chunk_size=READ_SIZE, get_compressobj=_deflater))


def pack_directory(root: Path, extra: Mapping[str, Path | bytes], target: Path) -> Packed:
    """Write the zip of a working directory to a file, and say its size and digest.

    Raises:
        OSError: the disk is full or cannot be read or written; nothing is left at `target`.
    """
    temporary = target.with_name(target.name + ".new")
    try:
        try:
            packed = _write(zip_directory(root, extra), temporary)
        except ZipError:
            # Something that the job left running in a group of its own still writes there.
            packed = _write(zip_directory(root, extra, live=True), temporary)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return packed


def _write(chunks: Iterator[bytes], path: Path) -> Packed:
    digest = hashlib.sha256()
    size = 0
    with open(path, "wb") as file:
        for chunk in chunks:
            file.write(chunk)
            digest.update(chunk)
            size += len(chunk)
    return Packed(size, digest.hexdigest())


async def in_thread(make: Callable[[], Iterator[bytes]]) -> AsyncIterator[bytes]:
    """The chunks of a blocking iterator, each taken in a thread."""
    chunks = make()
    while (chunk := await asyncio.to_thread(next, chunks, None)) is not None:
        yield chunk
