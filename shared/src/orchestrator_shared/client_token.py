"""The secret that a server and its clients share (CLIENT_TOKEN_FILE)."""

import hmac
import re
from collections.abc import Mapping
from typing import Final

from orchestrator_shared import settings

HEADER: Final = "Authorization"
#: The scheme of RFC 6750, section 2.1.
SCHEME: Final = "Bearer "


class ClientToken:
    """Whoever has it may have commands run by the clients; so it is shown nowhere."""

    def __init__(self, secret: str) -> None:
        self._header = SCHEME + secret

    @classmethod
    def from_file(cls, path: str) -> "ClientToken":
        """The one line of a file.

        Raises:
            ValueError: it cannot be read, or holds none.
        """
        file = settings.path(path)
        try:
            text = file.read_text("ascii").strip()
        except OSError as error:
            raise ValueError(f"{file} cannot be read: {error.strerror}") from error
        except UnicodeDecodeError:
            text = ""
        if not re.fullmatch(r"[!-~]+", text):
            raise ValueError(f"{file} has to hold one line of visible ASCII, without spaces")
        return cls(text)

    @property
    def headers(self) -> Mapping[str, str]:
        """What the server says with each request."""
        return {HEADER: self._header}

    def is_in(self, headers: Mapping[str, str]) -> bool:
        """Whether a request came with it."""
        said = headers.get(HEADER, "")
        return hmac.compare_digest(said.encode(errors="surrogateescape"), self._header.encode())
