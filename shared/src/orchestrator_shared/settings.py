"""Settings from the environment: units, URLs and paths, and which setting it is that is wrong."""

import os
import re
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from environs import Env, EnvError
from yarl import URL

from orchestrator_shared.errors import SettingError

T = TypeVar("T")
Choice = TypeVar("Choice", bound=StrEnum)

_SIZES = {"": 1, "b": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def read(env: Env, name: str, parse: Callable[[str], T], default: str) -> T:
    """The value of a setting; an empty one counts as not set.

    Raises:
        SettingError: it cannot be used; the message names it and says why.
    """
    try:
        return parse(env.str(name, default).strip() or default)
    except (ValueError, EnvError) as error:
        raise SettingError(setting=name, problem=str(error)) from error


def number(text: str, minimum: int = 0) -> int:
    """A whole number.

    Raises:
        ValueError: it is none, or less than `minimum`.
    """
    if not re.fullmatch(r"[+-]?[0-9]{1,18}", text):
        raise ValueError(f"'{text}' is not a whole number")
    if int(text) < minimum:
        raise ValueError(f"'{text}' is less than {minimum}")
    return int(text)


def positive(text: str) -> int:
    """A whole number of at least 1."""
    return number(text, 1)


def port(text: str) -> int:
    """A TCP port; 0 lets the system choose."""
    if number(text) > 65535:
        raise ValueError(f"'{text}' is not a port: the highest is 65535")
    return number(text)


def size(text: str) -> int:
    """Bytes; with k, M, G or T (also kB, KiB, …) as powers of 1024."""
    match = re.fullmatch(r"([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*([kmgt]?)(?:i?b)?", text.lower())
    if not match:
        raise ValueError(f"'{text}' is not a size, such as 1073741824, 400MiB or 1G")
    return int(float(match[1]) * _SIZES[match[2]])


def seconds(text: str) -> float:
    """Seconds; with m, h or d as minutes, hours or days."""
    match = re.fullmatch(r"([0-9]{1,12}(?:\.[0-9]{1,18})?)\s*([smhd]?)", text.lower())
    if not match:
        raise ValueError(f"'{text}' is not a time, such as 0.5, 15s, 10m or 7d")
    return float(match[1]) * _SECONDS[match[2]]


def interval(text: str) -> float:
    """Seconds of at least 0.01: how often something is done."""
    if seconds(text) < 0.01:
        raise ValueError(f"'{text}' is too short: at least 0.01 seconds")
    return seconds(text)


def optional(parse: Callable[[str], T]) -> Callable[[str], T | None]:
    """The same, but an empty text is None."""
    return lambda text: parse(text) if text else None


def one_of(choices: type[Choice]) -> Callable[[str], Choice]:
    """One of a few words."""

    def parse(text: str) -> Choice:
        try:
            return choices(text)
        except ValueError:
            raise ValueError(f"'{text}' is none of {', '.join(choices)}") from None

    return parse


def path(text: str) -> Path:
    """A path, made absolute; `~` is a home directory.

    Raises:
        ValueError: nobody knows whose, or it is not UTF-8, and could not be shown.
    """
    try:
        found = Path(text).expanduser().absolute()
        str(found).encode()
        return found
    except UnicodeEncodeError as error:
        raise ValueError(f"{os.fsencode(text)!r} is not UTF-8") from error
    except RuntimeError as error:
        raise ValueError(f"'{text}' begins with a home directory that is not known") from error


def names(text: str) -> tuple[str, ...]:
    """Names of environment variables, comma-separated."""
    found = tuple(part.strip() for part in text.split(",") if part.strip())
    for name in found:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError(f"'{name}' is not the name of a variable")
    return found


def exit_codes(text: str) -> frozenset[int]:
    """Exit statuses other than 0, comma-separated."""
    found = frozenset(number(part.strip(), 1) for part in text.split(",") if part.strip())
    if found and max(found) > 255:
        raise ValueError(f"'{max(found)}' is not an exit status: the highest is 255")
    return found


def log_level(text: str) -> str:
    """One of debug, info, warning, error, in capitals as logging wants it."""
    if text.lower() not in ("debug", "info", "warning", "error"):
        raise ValueError(f"'{text}' is none of debug, info, warning, error")
    return text.upper()


def urls(text: str) -> tuple[str, ...]:
    """HTTP URLs, comma-separated, without a slash at the end."""
    found = tuple(part.strip().rstrip("/") for part in text.split(",") if part.strip())
    for url in found:
        try:
            usable = URL(url).scheme in ("http", "https") and URL(url).host
        except ValueError:
            usable = False
        if not usable:
            raise ValueError(
                f"'{url}' is not a URL that begins with http:// or https:// and a host"
            )
    return found
