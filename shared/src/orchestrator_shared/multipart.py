"""multipart/form-data: how a file's name is written and read (RFC 7578, WHATWG HTML 4.10.21.8)."""

import asyncio
import re
from collections.abc import AsyncIterator, Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Final
from urllib.parse import quote, unquote_to_bytes

from orchestrator_shared.digests import write_digest
from orchestrator_shared.errors import BadUpload
from orchestrator_shared.protocol import RESERVED_NAME

CHUNK: Final = 256 * 1024

_PARAMETER = re.compile(rb';\s*([\w!#$&+^`|~.-]+\*?)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^;\s]*))', re.S)
_ENCODED: Final = {"%22": '"', "%0d": "\r", "%0a": "\n"}


@lru_cache(maxsize=256)
def read_disposition(header: bytes) -> Mapping[str, str]:
    """The parameters of a Content-Disposition: `name`, and `filename` where the part is a file.

    In a plain `filename` `%22`, `%0D` and `%0A` are decoded as browsers encode them, and nothing
    else; `\\"` and `\\\\` are the escapes of a quoted string. `filename*` counts where there is no
    plain one. A name that is not UTF-8 keeps its odd bytes as surrogates, for check_name to
    refuse. The last ones are kept: a portal's uploads have the same again and again.
    """
    found = _parameters(header)
    if "filename" in found:
        found["filename"] = re.sub(
            "%22|%0d|%0a", lambda match: _ENCODED[match[0].lower()], found["filename"], flags=re.I
        )
    elif "filename*" in found:
        # charset'language'value (RFC 8187, 3.2)
        value = found["filename*"].split("'", 2)[-1]
        found["filename"] = unquote_to_bytes(value).decode(errors="surrogateescape")
    return MappingProxyType(found)


@lru_cache(maxsize=256)
def read_undecoded_disposition(header: bytes) -> Mapping[str, str]:
    """The same of a sender that encodes nothing in a plain `filename`, and sends one with every
    file: `%22` is part of the name."""
    return MappingProxyType(_parameters(header))


def _parameters(header: bytes) -> dict[str, str]:
    found: dict[str, str] = {}
    for key, quoted, bare in _PARAMETER.findall(header):
        text = re.sub(rb'\\(["\\])', rb"\1", quoted) if quoted else bare
        found.setdefault(key.decode("ascii").lower(), text.decode(errors="surrogateescape"))
    return found


def write_disposition(name: str) -> str:
    """The Content-Disposition of a file that read_disposition gives back unchanged."""
    if re.search("%22|%0d|%0a", name, re.I):
        return f"form-data; name=\"file\"; filename*=utf-8''{quote(name, safe='')}"
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    return f'form-data; name="file"; filename="{escaped}"'


def check_name(text: str) -> str:
    """The name under which an uploaded file is kept: the part after the last '/'.

    Raises:
        BadUpload: it cannot be the name of a file in a working directory.
    """
    name = text.rpartition("/")[2]
    try:
        length = len(name.encode())
    except UnicodeEncodeError as error:
        raise BadUpload(problem=f"the file name {name!r} is not UTF-8") from error
    if not 1 <= length <= 255:
        raise BadUpload(problem=f"a file name has 1 to 255 bytes, '{name[:40]}' has {length}")
    if any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in name):
        raise BadUpload(problem=f"the file name {name!r} has control characters")
    if name in (".", "..", RESERVED_NAME):
        raise BadUpload(problem=f"a file cannot be named '{name}'")
    return name


def _head(boundary: str, name: str, sha256: str) -> bytes:
    return (
        f"--{boundary}\r\nContent-Disposition: {write_disposition(name)}\r\n"
        "Content-Type: application/octet-stream\r\n"
        f"Repr-Digest: {write_digest(sha256)}\r\n\r\n"
    ).encode()


def body_length(boundary: str, files: Iterable[tuple[str, int, str]]) -> int:
    """How many bytes stream_body will give for files of these names, sizes and digests."""
    heads_and_files = sum(len(_head(boundary, name, sha)) + size + 2 for name, size, sha in files)
    return heads_and_files + len(boundary) + 6


async def stream_body(
    boundary: str, files: Iterable[tuple[str, Path, str]]
) -> AsyncIterator[bytes]:
    """The files as a multipart body, in chunks, each with its digest (SHA-256, hexadecimal)."""
    for name, path, sha256 in files:
        yield _head(boundary, name, sha256)
        # Opened here and not in a thread: whoever is cancelled just then would leave it open.
        with open(path, "rb") as file:  # noqa: ASYNC230
            while chunk := await asyncio.to_thread(file.read, CHUNK):
                yield chunk
        yield b"\r\n"
    yield f"--{boundary}--\r\n".encode()
