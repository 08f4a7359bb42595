"""The settings of orch-client: what the environment says, and what it cannot say."""

import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator_client.config import Config, LegacyWire, OnStop
from orchestrator_shared.errors import SettingError

Read = Callable[..., Config]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Read:
    """Config.from_env with these variables in the environment and no others."""
    for name in list(os.environ):
        monkeypatch.delenv(name)

    def from_env(host: str | None = None, port: str | None = None, **variables: str) -> Config:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return Config.from_env(host, port)

    return from_env


def test_nothing_needs_to_be_set(
    read: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every setting has the default that the documentation names."""
    monkeypatch.chdir(tmp_path)

    assert read() == Config(
        host="127.0.0.1",
        port=9000,
        data_path=tmp_path / "client-data",
        db_path=":memory:",
        slots=len(os.sched_getaffinity(0)),
        cpus_per_slot=1,
        job_env=(),
        runner_interval=0.5,
        max_age=172800.0,
        unclaimed_max_age=30 * 86400.0,
        min_free_disk=2**30,
        log_level="INFO",
        job_timeout=None,
        kill_grace=10.0,
        service=None,
        check=None,
        on_stop=OnStop.LEAVE,
        stop_grace=0.0,
        client_token=None,
        legacy_wire=LegacyWire.OFF,
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    )


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("HOST", "0.0.0.0", "0.0.0.0"),  # noqa: S104 - nothing listens there
        ("PORT", "0", 0),
        ("PORT", "65535", 65535),
        ("DATA_PATH", "/var/lib/jobs", Path("/var/lib/jobs")),
        ("DB_PATH", "/var/lib/index.sqlite", "/var/lib/index.sqlite"),
        ("SLOTS", "16", 16),
        ("CPUS_PER_SLOT", "4", 4),
        ("JOB_ENV", "LICENSE_FILE, _GPU2,", ("LICENSE_FILE", "_GPU2")),
        ("RUNNER_INTERVAL", "0.1", 0.1),
        ("MAX_AGE", "7d", 7 * 86400.0),
        ("MAX_AGE", "0", 0.0),
        ("UNCLAIMED_MAX_AGE", "1h", 3600.0),
        ("MIN_FREE_DISK", "0", 0),
        ("MIN_FREE_DISK", "500M", 500 * 2**20),
        ("LOG_LEVEL", "Debug", "DEBUG"),
        ("JOB_TIMEOUT", "12h", 43200.0),
        ("JOB_TIMEOUT", "", None),
        ("KILL_GRACE", "0", 0.0),
        ("KILL_GRACE", "1m", 60.0),
        ("SERVICE", "MD-Prep", "md_prep"),
        ("SERVICE", "", None),
        ("CHECK", "/opt/check gpu", "/opt/check gpu"),
        ("ON_STOP", "leave", OnStop.LEAVE),
        ("ON_STOP", "hand-back", OnStop.HAND_BACK),
        ("ON_STOP", "finish", OnStop.FINISH),
        ("STOP_GRACE", "1h", 3600.0),
        ("LEGACY_WIRE", "off", LegacyWire.OFF),
        ("LEGACY_WIRE", "v1", LegacyWire.V1),
        ("LEGACY_WIRE", "v2", LegacyWire.V2),
    ],
)
def test_a_setting_is_taken_from_the_environment(
    read: Read, name: str, value: str, expected: object
) -> None:
    """Each variable sets the field of its name, in its unit."""
    assert getattr(read(**{name: value}), name.lower()) == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "http"),
        ("PORT", "65536"),
        ("PORT", "-1"),
        ("SLOTS", "0"),
        ("SLOTS", "two"),
        ("SLOTS", "1.5"),
        ("CPUS_PER_SLOT", "0"),
        ("JOB_ENV", "GOOD,NOT-A-NAME"),
        ("JOB_ENV", "A=1"),
        ("RUNNER_INTERVAL", "0"),
        ("RUNNER_INTERVAL", "often"),
        ("MAX_AGE", "-1"),
        ("MAX_AGE", "2 weeks"),
        ("UNCLAIMED_MAX_AGE", "never"),
        ("MIN_FREE_DISK", "1 PB"),
        ("MIN_FREE_DISK", "-1"),
        ("LOG_LEVEL", "loud"),
        ("JOB_TIMEOUT", "0"),
        ("JOB_TIMEOUT", "1:30"),
        ("KILL_GRACE", "-1"),
        ("KILL_GRACE", "soon"),
        ("ON_STOP", "restart"),
        ("STOP_GRACE", "-1"),
        ("LEGACY_WIRE", "v3"),
        ("LEGACY_WIRE", "2"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(read: Read, name: str, value: str) -> None:
    """The one line says which setting it is, and what stands there."""
    with pytest.raises(SettingError) as raised:
        read(**{name: value})

    assert str(raised.value).startswith(f"{name}: ")
    assert value.split(",")[-1] in str(raised.value)
    assert "\n" not in str(raised.value)
    assert raised.value.exit_code == 2


@pytest.mark.parametrize("wire", list(LegacyWire))
def test_an_original_server_cannot_know_a_token(
    read: Read, tmp_path: Path, wire: LegacyWire
) -> None:
    """Nothing of it would be answered: the two settings exclude each other."""
    token = tmp_path / "token"
    token.write_text("of-both-sides")
    settings = {"CLIENT_TOKEN_FILE": str(token), "LEGACY_WIRE": wire.value}
    if wire is LegacyWire.OFF:
        assert read(**settings).client_token is not None
        return
    with pytest.raises(SettingError, match=r"^LEGACY_WIRE: .*CLIENT_TOKEN_FILE.*one of the two$"):
        read(**settings)


@pytest.mark.parametrize("share", [1, 2, 3, 10_000])
def test_slots_are_what_the_cpus_allow(read: Read, share: int) -> None:
    """CPUs / CPUS_PER_SLOT by default, and one at least."""
    expected = max(1, len(os.sched_getaffinity(0)) // share)

    assert read(CPUS_PER_SLOT=str(share)).slots == expected
    assert read(CPUS_PER_SLOT=str(share), SLOTS="7").slots == 7


def test_flags_override_the_environment(read: Read) -> None:
    """--host and --port count more than HOST and PORT."""
    config = read("127.0.0.2", "9001", HOST="127.0.0.3", PORT="9002")

    assert (config.host, config.port) == ("127.0.0.2", 9001)


def test_a_flag_that_cannot_be_used_is_named(read: Read) -> None:
    """As if it stood in the environment."""
    with pytest.raises(SettingError, match=r"^PORT: 'x' is not a whole number$"):
        read(None, "x", PORT="9000")
