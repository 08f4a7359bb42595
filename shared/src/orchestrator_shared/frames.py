"""One message of the stream: a line of JSON, and behind it the bytes that belong to it."""

import json
from typing import Any

from marshmallow import ValidationError

from orchestrator_shared.errors import NotUsable
from orchestrator_shared.protocol import frame_schema, load


def pack_frame(kind: str, header: dict[str, Any], body: bytes = b"") -> bytes:
    """Write a message of this type; `header` has the plain values of its schema."""
    return json.dumps({"type": kind, **header}, separators=(",", ":")).encode() + b"\n" + body


def unpack_frame(frame: bytes) -> tuple[str, dict[str, Any], bytes]:
    """Read a message: its type, its fields, and its bytes.

    Raises:
        NotUsable: it is none of the messages that protocol.py knows.
    """
    line, _, body = frame.partition(b"\n")
    try:
        header = json.loads(line)
        kind = header["type"]
        return kind, load(frame_schema(kind), header), body
    # RecursionError: brackets in brackets, thousands deep.
    except (ValueError, KeyError, TypeError, ValidationError, RecursionError) as error:
        raise NotUsable(problem=f"a message of the stream does not fit: {error}") from error
