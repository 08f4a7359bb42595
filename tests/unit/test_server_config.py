"""The settings of orch-server: what the environment says, and what it cannot say."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator_server.config import ApiCompat, ClientAddress, Config
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


def test_nothing_needs_to_be_set(read: Read, tmp_path: Path, monkeypatch: Any) -> None:
    """Every setting has the default that the documentation names."""
    monkeypatch.chdir(tmp_path)

    assert read() == Config(
        host="127.0.0.1",
        port=5000,
        db_path=tmp_path / "orch-server.sqlite",
        data_path=tmp_path / "server-data",
        max_age=172800.0,
        max_upload_size=400 * 2**20,
        min_free_disk=2**30,
        sender_interval=0.5,
        getter_interval=0.5,
        cleaner_interval=60.0,
        client_lost_after=15.0,
        client_gone_after=600.0,
        client_give_up_after=7 * 86400.0,
        log_level="INFO",
        services={},
    )


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("HOST", "0.0.0.0", "0.0.0.0"),  # noqa: S104 - nothing listens there
        ("PORT", "0", 0),
        ("PORT", "65535", 65535),
        ("DB_PATH", "/var/lib/jobs.sqlite", Path("/var/lib/jobs.sqlite")),
        ("DATA_PATH", "/var/lib/jobs", Path("/var/lib/jobs")),
        ("MAX_AGE", "3600", 3600.0),
        ("MAX_AGE", "7d", 7 * 86400.0),
        ("MAX_AGE", "0", 0.0),
        ("MAX_UPLOAD_SIZE", "1048576", 2**20),
        ("MAX_UPLOAD_SIZE", "2GiB", 2 * 2**30),
        ("MIN_FREE_DISK", "0", 0),
        ("MIN_FREE_DISK", "500M", 500 * 2**20),
        ("SENDER_INTERVAL", "0.1", 0.1),
        ("GETTER_INTERVAL", "2", 2.0),
        ("CLEANER_INTERVAL", "10m", 600.0),
        ("CLIENT_LOST_AFTER", "20s", 20.0),
        ("LOG_LEVEL", "Debug", "DEBUG"),
        ("LOG_LEVEL", "warning", "WARNING"),
        ("API_COMPAT", "off", ApiCompat.OFF),
        ("API_COMPAT", "v2", ApiCompat.V2),
    ],
)
def test_a_setting_is_taken_from_the_environment(
    read: Read, name: str, value: str, expected: object
) -> None:
    """Each variable sets the field of its name, in its unit."""
    assert getattr(read(**{name: value}), name.lower()) == expected


def test_an_empty_setting_counts_as_not_set(read: Read) -> None:
    """A variable that a unit file leaves empty keeps its default, and names no service."""
    config = read(PORT="", MAX_AGE="", SERVICE_A_URL="", SERVICE_A_MAX_RUNS="")

    assert (config.port, config.max_age, config.services) == (5000, 172800.0, {})


def test_flags_override_the_environment(read: Read) -> None:
    """--host and --port count for more than HOST and PORT."""
    config = read("::1", "81", HOST="127.0.0.2", PORT="80")

    assert (config.host, config.port) == ("::1", 81)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "http"),
        ("PORT", "65536"),
        ("PORT", "-1"),
        ("MAX_AGE", "two days"),
        ("MAX_AGE", "-5"),
        ("MAX_UPLOAD_SIZE", "400 MB!"),
        ("MIN_FREE_DISK", "-1"),
        ("SENDER_INTERVAL", "0"),
        ("GETTER_INTERVAL", "fast"),
        ("CLEANER_INTERVAL", "1 minute"),
        ("CLIENT_LOST_AFTER", "nan"),
        ("LOG_LEVEL", "loud"),
        ("API_COMPAT", "v1"),
        ("SERVICE_A_RUNS_PER_USER", "0"),
        ("SERVICE_A_MAX_RUNS", "ten"),
        ("SERVICE_A_MAX_ATTEMPTS", "1.5"),
        ("SERVICE_A_MAX_AGE", "never"),
        ("SERVICE_A_URL", "127.0.0.1:9000"),
        ("SERVICE_A_URL", "ftp://host"),
        ("SERVICE_A_URL", "http://"),
        ("SERVICE_A_URL", "http://one,two"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(read: Read, name: str, value: str) -> None:
    """The error is one line that begins with the setting and shows what is wrong with it."""
    with pytest.raises(SettingError) as raised:
        read(**{"SERVICE_A_URL": "http://host", name: value})

    assert str(raised.value).startswith(f"{name}: ")
    assert value.split(",")[-1].rstrip("/") in str(raised.value)
    assert "\n" not in str(raised.value)
    assert raised.value.exit_code == 2


# --- services


def test_a_service_is_its_urls_and_limits(read: Read) -> None:
    """The defaults of a service hold where only its client is named."""
    service = read(SERVICE_HADDOCK_URL="http://host:9000").services["haddock"]

    assert service.clients == (
        ClientAddress(
            "http://host:9000",
            "http://host:9000/submit",
            "http://host:9000/retrieve",
            "http://host:9000/kill",
        ),
    )
    assert (service.runs_per_user, service.max_runs, service.max_attempts) == (5, None, 3)
    assert service.max_age == 172800.0


def test_the_limits_of_a_service_can_be_set(read: Read) -> None:
    """Each limit is the service's own."""
    services = read(
        SERVICE_A_URL="http://a",
        SERVICE_A_RUNS_PER_USER="2",
        SERVICE_A_MAX_RUNS="20",
        SERVICE_A_MAX_ATTEMPTS="1",
        SERVICE_A_MAX_AGE="1h",
        SERVICE_B_URL="http://b",
        MAX_AGE="1d",
    ).services

    a, b = services["a"], services["b"]
    assert (a.runs_per_user, a.max_runs, a.max_attempts, a.max_age) == (2, 20, 1, 3600.0)
    assert (b.runs_per_user, b.max_runs, b.max_attempts, b.max_age) == (5, None, 3, 86400.0)


def test_a_very_long_max_age_holds_for_every_service(read: Read) -> None:
    """A number that is not written with all its digits is taken over as well as any."""
    config = read(MAX_AGE="999999999999d", SERVICE_A_URL="http://a")

    assert config.services["a"].max_age == 999_999_999_999 * 86400.0


@pytest.mark.parametrize(
    ("value", "bases"),
    [
        ("http://one", ["http://one"]),
        ("http://one/", ["http://one"]),
        ("http://one/behind/a/proxy/", ["http://one/behind/a/proxy"]),
        ("http://one , https://two:9000,", ["http://one", "https://two:9000"]),
    ],
)
def test_clients_are_listed_with_commas(read: Read, value: str, bases: list[str]) -> None:
    """Spaces, a comma too many and a slash at the end do no harm."""
    service = read(SERVICE_A_URL=value).services["a"]

    assert [client.base for client in service.clients] == bases
    assert [client.submit for client in service.clients] == [f"{b}/submit" for b in bases]


def test_three_urls_name_the_routes_of_a_client(read: Read) -> None:
    """They are used as they are; the base is the upload URL without its last segment."""
    service = read(
        SERVICE_A_UPLOAD_URL="http://host/api/jobs/",
        SERVICE_A_DOWNLOAD_URL="http://host/results",
        SERVICE_A_TERMINATE_URL="http://other/stop",
    ).services["a"]

    assert service.clients == (
        ClientAddress(
            "http://host/api", "http://host/api/jobs", "http://host/results", "http://other/stop"
        ),
    )


def test_two_of_the_three_urls_can_be_left_out(read: Read) -> None:
    """They follow from the base of each client."""
    service = read(SERVICE_A_UPLOAD_URL="http://one/submit,http://two/x/submit").services["a"]

    assert service.clients == (
        ClientAddress.from_base("http://one"),
        ClientAddress.from_base("http://two/x"),
    )


def test_lists_of_urls_belong_together_in_their_order(read: Read) -> None:
    """The second client has the second URL of each list."""
    service = read(
        SERVICE_A_UPLOAD_URL="http://one/submit,http://two/submit",
        SERVICE_A_TERMINATE_URL="http://one/stop,http://two/stop",
    ).services["a"]

    assert [(c.base, c.kill) for c in service.clients] == [
        ("http://one", "http://one/stop"),
        ("http://two", "http://two/stop"),
    ]


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"UPLOAD_URL": "http://a/submit,http://b/submit", "DOWNLOAD_URL": "http://a/retrieve"},
         "DOWNLOAD_URL"),
        ({"UPLOAD_URL": "http://a/submit", "TERMINATE_URL": "http://a/kill,http://b/kill"},
         "TERMINATE_URL"),
        ({"URL": "http://a", "UPLOAD_URL": "http://a/submit"}, "URL"),
        ({"URL": "http://a", "DOWNLOAD_URL": "http://a/retrieve"}, "URL"),
        ({"URL": "http://a", "TERMINATE_URL": "http://a/kill"}, "URL"),
        ({"DOWNLOAD_URL": "http://a/retrieve"}, "URL"),
        ({"MAX_RUNS": "5"}, "URL"),
        ({"URL": ","}, "URL"),
        ({"URL": "http://a,http://a/"}, "URL"),
        ({"UPLOAD_URL": "http://a:9000"}, "UPLOAD_URL"),
        ({"UPLOAD_URL": "http://a:9000/"}, "UPLOAD_URL"),
    ],
    ids=str,
)  # fmt: skip
def test_urls_that_do_not_fit_together_are_named(
    read: Read, variables: dict[str, str], named: str
) -> None:
    """Lists of unequal length, two ways at once, no client, one twice, a URL with no route."""
    with pytest.raises(SettingError, match=f"^SERVICE_FOO_{named}: "):
        read(**{f"SERVICE_FOO_{suffix}": value for suffix, value in variables.items()})


@pytest.mark.parametrize(
    ("variable", "service"),
    [
        ("SERVICE_FOO_URL", "foo"),
        ("SERVICE_FOO_BAR_URL", "foo_bar"),
        ("SERVICE_FOO_UPLOAD_URL", "foo"),
        ("SERVICE_FOO_UPLOAD_UPLOAD_URL", "foo_upload"),
        ("SERVICE_FOO_URL_URL", "foo_url"),
        ("SERVICE_UPLOAD_URL", "upload"),
        ("SERVICE_FOO-BAR.2_URL", "foo_bar_2"),
        ("SERVICE_Foo_url", "foo"),
        ("service_foo_url", "foo"),
    ],
)
def test_the_longest_known_suffix_ends_the_name(read: Read, variable: str, service: str) -> None:
    """What stands before it is the service, which may itself have underscores."""
    assert list(read(**{variable: "http://host/submit"}).services) == [service]


def test_a_service_may_end_as_a_setting_does(read: Read) -> None:
    """FOO_MAX_RUNS_PER_USER is the limit per user of `foo_max`, not one of `foo`."""
    config = read(SERVICE_FOO_MAX_URL="http://host", SERVICE_FOO_MAX_RUNS_PER_USER="2")

    assert config.services["foo_max"].runs_per_user == 2


def test_one_setting_spelled_twice_is_refused(read: Read) -> None:
    """Neither counts silently for more than the other."""
    with pytest.raises(SettingError, match=r"^SERVICE_FOO_BAR_URL: SERVICE_FOO-BAR_URL says"):
        read(**{"SERVICE_FOO-BAR_URL": "http://a", "SERVICE_FOO_BAR_URL": "http://b"})


@pytest.mark.parametrize("empty", ["SERVICE_FOO-BAR_URL", "SERVICE_FOO_BAR_URL"])
def test_of_two_spellings_an_empty_one_does_no_harm(read: Read, empty: str) -> None:
    """It counts as not set, whichever it is."""
    both = {"SERVICE_FOO-BAR_URL": "http://a", "SERVICE_FOO_BAR_URL": "http://a", empty: ""}

    assert read(**both).services["foo_bar"].clients == (ClientAddress.from_base("http://a"),)


def test_what_only_looks_like_a_setting_is_remembered(read: Read) -> None:
    """The start can warn of a variable that was perhaps misspelled."""
    config = read(SERVICE_FOO_URL="http://a", SERVICE_FOO_MAX_RUN="3", SERVICE__URL="http://b")

    assert config.ignored == ("SERVICE_FOO_MAX_RUN", "SERVICE__URL")
    assert list(config.services) == ["foo"]
