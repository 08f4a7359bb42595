"""Settings: what their texts mean, and how one that cannot be used is told."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from environs import Env

from orchestrator_shared import settings
from orchestrator_shared.errors import SettingError


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (settings.number, "0", 0),
        (settings.number, "+5", 5),
        (settings.number, "007", 7),
        (settings.number, "9" * 18, 10**18 - 1),
        (settings.positive, "1", 1),
        (settings.port, "0", 0),
        (settings.port, "65535", 65535),
        (settings.size, "0", 0),
        (settings.size, "1073741824", 2**30),
        (settings.size, "400MiB", 400 * 2**20),
        (settings.size, "400 MB", 400 * 2**20),
        (settings.size, "1G", 2**30),
        (settings.size, "1.5k", 1536),
        (settings.size, "2t", 2**41),
        (settings.size, "12b", 12),
        (settings.seconds, "0.5", 0.5),
        (settings.seconds, "15s", 15.0),
        (settings.seconds, "10m", 600.0),
        (settings.seconds, "1.5 h", 5400.0),
        (settings.seconds, "7D", 604800.0),
        (settings.seconds, "0", 0.0),
        (settings.interval, "0.01", 0.01),
        (settings.interval, "1m", 60.0),
        (settings.optional(settings.number), "", None),
        (settings.optional(settings.number), "3", 3),
        (settings.names, "", ()),
        (settings.names, "A, _b ,,C9", ("A", "_b", "C9")),
        (settings.log_level, "Debug", "DEBUG"),
        (settings.log_level, "warning", "WARNING"),
        (settings.urls, "", ()),
        (settings.urls, "http://a:9000/, https://b/x/ ,", ("http://a:9000", "https://b/x")),
        (settings.urls, "http://[::1]:9000", ("http://[::1]:9000",)),
        (settings.path, "/a/b", Path("/a/b")),
        (settings.path, "a", Path.cwd() / "a"),
        (settings.path, "~/a", Path.home() / "a"),
    ],
)
def test_a_text_becomes_its_value(parse: Callable[[str], Any], text: str, value: Any) -> None:
    """With its unit, where it has one."""
    assert parse(text) == value


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (settings.number, "-1"),
        (settings.number, ""),
        (settings.number, "1.5"),
        (settings.number, "1e3"),
        (settings.number, "0x10"),
        (settings.number, "1_000"),
        (settings.number, "\u0663"),
        (settings.number, "9" * 5000),
        (settings.positive, "0"),
        (settings.port, "65536"),
        (settings.port, "-1"),
        (settings.port, "http"),
        (settings.size, ""),
        (settings.size, "-1"),
        (settings.size, "1X"),
        (settings.size, "MiB"),
        (settings.size, "1 G G"),
        (settings.size, "9" * 400),
        (settings.seconds, ""),
        (settings.seconds, "-1"),
        (settings.seconds, "nan"),
        (settings.seconds, "inf"),
        (settings.seconds, "1e9"),
        (settings.seconds, "9" * 400),
        (settings.seconds, "5 weeks"),
        (settings.interval, "0"),
        (settings.interval, "0.001"),
        (settings.interval, "often"),
        (settings.names, "A B"),
        (settings.names, "1A"),
        (settings.names, "A=1"),
        (settings.log_level, "loud"),
        (settings.log_level, ""),
        (settings.urls, "localhost:9000"),
        (settings.urls, "ftp://a"),
        (settings.urls, "http://"),
        (settings.urls, "http://a, b"),
        (settings.urls, "http://[::1"),
        (settings.urls, "http://a:port"),
        (settings.path, "~nobody-of-this-name/x"),
        (settings.path, "/data\udcff"),
    ],
)
def test_a_text_that_cannot_be_used_stops_the_start(
    parse: Callable[[str], Any], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one line that names the setting; its default is not taken instead."""
    with pytest.raises(ValueError, match=r"."):
        parse(text)
    if text:
        monkeypatch.setenv("SOME_SETTING", text)
        with pytest.raises(SettingError, match=r"^SOME_SETTING: .") as refused:
            settings.read(Env(), "SOME_SETTING", parse, "1")
        assert "\n" not in str(refused.value)
        assert refused.value.exit_code == 2


@pytest.mark.parametrize("text", [None, "", " "])
def test_a_setting_that_is_empty_has_its_default(
    text: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that is not set at all."""
    monkeypatch.delenv("SOME_SETTING", raising=False)
    if text is not None:
        monkeypatch.setenv("SOME_SETTING", text)

    assert settings.read(Env(), "SOME_SETTING", settings.number, "7") == 7


def test_blanks_around_a_setting_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    """They come from files of settings."""
    monkeypatch.setenv("SOME_SETTING", " 5 \n")

    assert settings.read(Env(), "SOME_SETTING", settings.number, "7") == 5
