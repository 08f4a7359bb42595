"""The zip of a few small files, made in memory: what archive.py makes of any directory takes a job
that takes no time four times as long."""

import hashlib
import io
import os
import stat
import struct
import time
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from orchestrator_shared.archive import Packed
from orchestrator_shared.folders import list_few
from orchestrator_shared.protocol import RESERVED_NAME

#: The most files, and bytes in sum.
FEW_FILES: Final = 16
SMALL_SIZE: Final = 16 * 1024
#: What has fewer bytes than this is stored as it is: it would hardly shrink.
_DEFLATED_FROM: Final = 64
#: The tag of the modification time in UTC, and what follows it: APPNOTE 6.3.10, 4.5.7 (0x5455).
_UNIX_TIME: Final = struct.Struct("<HHBl")


def pack_few(root: str, extra: Mapping[str, Path | bytes]) -> tuple[Packed, bytes] | None:
    """The zip of a directory, as pack_directory makes it; None if that is more than a few small
    files. `extra` are entries of our own likewise.

    Raises:
        OSError: a file cannot be read.
    """
    made = io.BytesIO()
    left = SMALL_SIZE
    try:
        with zipfile.ZipFile(made, "w", compresslevel=1) as zipped:
            for name, mode, modified, content in (*_files(root), *_extra(extra)):
                left -= len(content)
                if left < 0:
                    return None
                _add(zipped, name, mode, modified, content)
    except _TooMuch:
        return None
    packed = made.getvalue()
    return Packed(len(packed), hashlib.sha256(packed).hexdigest()), packed


#: Name, mode, time of modification (seconds since 1970) and content.
_Member = tuple[str, int, float, bytes]


class _TooMuch(Exception):
    """There is something else than a few small files."""


def _files(root: str) -> Iterator[_Member]:
    """Each file of a directory in the order of names; no link is followed."""
    try:
        folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        raise _TooMuch from error
    try:
        names = sorted(list_few(folder, FEW_FILES))
        if len(names) > FEW_FILES or not all(map(_is_plain, names)):
            raise _TooMuch
        for name in names:
            yield _read(name, name, folder)
    finally:
        os.close(folder)


def _extra(extra: Mapping[str, Path | bytes]) -> Iterator[_Member]:
    for name, content in extra.items():
        path = f"{RESERVED_NAME}/{name}"
        if isinstance(content, bytes):
            yield path, stat.S_IFREG | 0o600, time.time(), content
        else:
            yield _read(path, str(content))


def _is_plain(name: str) -> bool:
    return name != RESERVED_NAME and name.isprintable()


def _read(name: str, path: str, folder: int | None = None) -> _Member:
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    except OSError as error:
        raise _TooMuch from error
    try:
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode):
            raise _TooMuch
        # One byte more than it may have, so that more is noticed.
        return name, status.st_mode, status.st_mtime, os.read(file, SMALL_SIZE + 1)
    finally:
        os.close(file)


def _add(zipped: zipfile.ZipFile, name: str, mode: int, modified: float, content: bytes) -> None:
    # The DOS fields of a zip begin in 1980, the extended ones end in 2038.
    when = int(min(max(modified, 315_619_200), 2_147_400_000))
    entry = zipfile.ZipInfo(name, time.gmtime(when)[:6])
    entry.extra = _UNIX_TIME.pack(0x5455, 5, 1, when)
    entry.external_attr = mode << 16
    if len(content) >= _DEFLATED_FROM:
        entry.compress_type = zipfile.ZIP_DEFLATED
    zipped.writestr(entry, content)
