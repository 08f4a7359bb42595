"""One message of the stream: a check, a line of JSON, and the bytes that belong to it.

The check is the CRC-32 of all that follows (4 bytes, big-endian): a message that arrived damaged
must not be taken for one about another job.
"""

import zlib

from orchestrator_shared.errors import NotUsable
from orchestrator_shared.messages import (
    KINDS,
    Message,
    Other,
    decode_message,
    decode_other,
    encode_message,
)


def pack_frame(message: Message, body: bytes = b"") -> bytes:
    """Write a message, and the bytes that belong to it."""
    return pack_line(encode_message(message), body)


def pack_line(line: bytes, body: bytes = b"") -> bytes:
    """Write a line of JSON, whatever it says, as a message."""
    line += b"\n"
    return zlib.crc32(body, zlib.crc32(line)).to_bytes(4) + line + body


def unpack_frame(frame: bytes) -> tuple[Message | Other, bytes]:
    """Read a message, and its bytes.

    Raises:
        NotUsable: it arrived damaged, or is none of the messages that messages.py knows.
    """
    if frame[:4] != zlib.crc32(memoryview(frame)[4:]).to_bytes(4):
        raise NotUsable(problem="a message of the stream arrived damaged")
    line, _, body = frame[4:].partition(b"\n")
    try:
        try:
            return decode_message(line), body
        except ValueError:
            if (other := decode_other(line)).type in KINDS:
                raise
            return other, body
    # RecursionError: brackets in brackets, thousands deep.
    except (ValueError, RecursionError) as error:
        raise NotUsable(problem=f"a message of the stream does not fit: {error}") from error
