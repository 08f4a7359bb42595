"""A packed result as an answer: Range, If-Range, ETag and digest (RFC 9110, RFC 9530)."""

import errno
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import aiofiles
from aiohttp import web

from orchestrator_shared.digests import write_digest

CHUNK: Final = 512 * 1024
#: Of numbers only as many digits as a size can have: a longer one is not understood.
_RANGE: Final = re.compile(r"bytes=([0-9]{0,19})-([0-9]{0,19})", re.I)
_DAMAGED: Final = "the file is not as long as it was"


@dataclass(frozen=True)
class Sealed:
    """A zip that never changes again: where it is, its bytes and its SHA-256 in hex."""

    content: Path | bytes
    size: int
    sha256: str

    @property
    def etag(self) -> str:
        """The entity tag: the same bytes always have the same, and others never do."""
        return f'"{self.sha256}"'

    @property
    def repr_digest(self) -> str:
        """The value of Repr-Digest."""
        return write_digest(self.sha256)


def _chosen_range(request: web.Request, sealed: Sealed) -> tuple[int, int] | None:
    """First byte and end of the range that a GET asks for; None for the whole.

    A range that cannot be understood, and one for other bytes than these (If-Range), asks for
    the whole, as RFC 9110 says (14.2, 13.1.5).

    Raises:
        web.HTTPRequestRangeNotSatisfiable: it lies behind the end.
    """
    match = _RANGE.fullmatch(request.headers.get("Range", "").strip())
    if not match or request.headers.get("If-Range", sealed.etag) != sealed.etag:
        return None
    first, last = match.groups()
    if first:
        start, end = int(first), int(last) + 1 if last else sealed.size
        if last and int(last) < start:
            return None
    elif last:
        start, end = max(0, sealed.size - int(last)), sealed.size
    else:
        return None
    if start >= sealed.size:
        raise web.HTTPRequestRangeNotSatisfiable(
            headers={"Content-Range": f"bytes */{sealed.size}"}
        )
    return start, min(end, sealed.size)


def _is_known(request: web.Request, sealed: Sealed) -> bool:
    """Whether the caller has these bytes (If-None-Match; weak tags count: RFC 9110, 13.1.2)."""
    tags = ",".join(request.headers.getall("If-None-Match", [])).split(",")
    known = {tag.strip().removeprefix("W/") for tag in tags}
    return sealed.etag in known or "*" in known


async def answer_sealed(
    request: web.Request, sealed: Sealed, headers: Mapping[str, str]
) -> web.StreamResponse:
    """Answer with the zip, or the part of it that is asked for. HEAD reads no file.

    Raises:
        web.HTTPRequestRangeNotSatisfiable: the range lies behind the end.
        OSError: the file cannot be read, or is not as long as it was.
    """
    response = web.StreamResponse(
        headers={
            "Content-Type": "application/zip",
            "ETag": sealed.etag,
            "Repr-Digest": sealed.repr_digest,
            "Accept-Ranges": "bytes",
            **headers,
        }
    )
    if _is_known(request, sealed):
        response.set_status(304)
        del response.headers["Content-Type"]
        await response.prepare(request)
        return response
    start, end = 0, sealed.size
    # RFC 9110, 14.2: a range is for GET alone.
    if request.method == "GET" and (chosen := _chosen_range(request, sealed)):
        start, end = chosen
        response.set_status(206)
        response.headers["Content-Range"] = f"bytes {start}-{end - 1}/{sealed.size}"
    response.content_length = end - start
    if request.method == "HEAD":
        await response.prepare(request)
        return response
    if isinstance(sealed.content, bytes):
        await response.prepare(request)
        await response.write(sealed.content[start:end])
    else:
        # Looked at before the headers go out: what is gone or damaged can still be answered so.
        async with aiofiles.open(sealed.content, "rb") as file:
            if os.fstat(file.fileno()).st_size != sealed.size:
                raise OSError(errno.EIO, _DAMAGED, str(sealed.content))
            await response.prepare(request)
            await file.seek(start)
            left = end - start
            chunk = b""
            while left:
                if chunk:
                    await response.write(chunk)
                chunk = await file.read(min(CHUNK, left))
                if not chunk:
                    raise OSError(errno.EIO, _DAMAGED, str(sealed.content))
                left -= len(chunk)
        # The last bytes once the file is closed: nobody waits for what comes behind them.
        await response.write(chunk)
    await response.write_eof()
    return response
