"""One message of the stream: a check, a line of JSON, and the bytes that belong to it.

The check is the CRC-32 of all that follows (4 bytes, big-endian): a message that arrived damaged
must not be taken for one about another job.
"""

import json
import zlib
from typing import Any

from marshmallow import ValidationError

from orchestrator_shared.errors import NotUsable
from orchestrator_shared.protocol import frame_schema, load


def pack_frame(kind: str, header: dict[str, Any], body: bytes = b"") -> bytes:
    """Write a message of this type; `header` has the plain values of its schema."""
    line = json.dumps({"type": kind, **header}, separators=(",", ":")).encode() + b"\n"
    return zlib.crc32(body, zlib.crc32(line)).to_bytes(4) + line + body


def unpack_frame(frame: bytes) -> tuple[str, dict[str, Any], bytes]:
    """Read a message: its type, its fields, and its bytes.

    Raises:
        NotUsable: it arrived damaged, or is none of the messages that protocol.py knows.
    """
    if frame[:4] != zlib.crc32(memoryview(frame)[4:]).to_bytes(4):
        raise NotUsable(problem="a message of the stream arrived damaged")
    line, _, body = frame[4:].partition(b"\n")
    try:
        header = json.loads(line)
        kind = header["type"]
        return kind, load(frame_schema(kind), header), body
    # RecursionError: brackets in brackets, thousands deep.
    except (ValueError, KeyError, TypeError, ValidationError, RecursionError) as error:
        raise NotUsable(problem=f"a message of the stream does not fit: {error}") from error
