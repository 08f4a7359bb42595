"""Messages of the stream as a test writes and reads them: plain values, right or wrong."""

import json
from collections.abc import Mapping
from typing import Any

from orchestrator_shared.frames import pack_line
from orchestrator_shared.messages import Message, Other, encode_message


def raw_frame(kind: str, header: Mapping[str, Any], body: bytes = b"") -> bytes:
    """A frame with this header, whether it fits its type or not."""
    return pack_line(json.dumps({"type": kind, **header}).encode(), body)


def plain(message: Message | Other) -> tuple[str, dict[str, Any]]:
    """The type of a message, and its fields as JSON has them."""
    header: dict[str, Any] = json.loads(encode_message(message))
    return header.pop("type"), header
