"""SHA-256 of what is sent: as a header has it (RFC 9530), and compared with what arrived."""

import base64
import re
from typing import Final

from orchestrator_shared.errors import DamagedOnTheWay

_SHA256: Final = re.compile(rb"sha-256=:([A-Za-z0-9+/]{43}=):")


def write_digest(sha256: str) -> str:
    """A digest (hexadecimal) as the value of Repr-Digest."""
    return f"sha-256=:{base64.b64encode(bytes.fromhex(sha256)).decode()}:"


def read_digest(header: bytes) -> str | None:
    """The digest (hexadecimal) in the value of a Repr-Digest; None if it has none to be read."""
    match = _SHA256.search(header)
    return base64.b64decode(match[1]).hex() if match else None


def check_digest(name: str, sha256: str, declared: str | None) -> None:
    """Compare a file with what its sender says of it, if that says anything.

    Raises:
        DamagedOnTheWay: they differ.
    """
    if declared is not None and sha256 != declared:
        raise DamagedOnTheWay(what=f"The file '{name}' (its SHA-256 differs)")
