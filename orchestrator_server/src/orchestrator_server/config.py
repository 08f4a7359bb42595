"""The server's settings, from the environment."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from environs import Env
from yarl import URL

from orchestrator_shared import settings
from orchestrator_shared.client_token import ClientToken
from orchestrator_shared.errors import SettingError
from orchestrator_shared.protocol import KILL, RETRIEVE, SUBMIT, service_name
from orchestrator_shared.settings import read

#: What may follow `SERVICE_<NAME>_`; the longest that fits counts.
SERVICE_SETTINGS = (
    "UPLOAD_URL",
    "DOWNLOAD_URL",
    "TERMINATE_URL",
    "URL",
    "RUNS_PER_USER",
    "MAX_RUNS",
    "MAX_ATTEMPTS",
    "MAX_RUNTIME",
    "RETRY_EXIT_CODES",
    "MAX_AGE",
)


class ApiCompat(StrEnum):
    """What portals are answered that were written for another server (API_COMPAT)."""

    OFF = "off"
    V2 = "v2"


@dataclass(frozen=True, slots=True)
class ClientAddress:
    """Where a client answers. All are URLs without a slash at the end."""

    base: str
    submit: str
    retrieve: str
    kill: str

    @classmethod
    def from_base(cls, base: str) -> "ClientAddress":
        """A client whose routes are named as ours are."""
        return cls(base, base + SUBMIT, base + RETRIEVE, base + KILL)


@dataclass(frozen=True, slots=True)
class Service:
    """A kind of job: its clients and its limits."""

    name: str
    #: The base URLs of its clients (SERVICE_<NAME>_URL), or their /submit, /retrieve and /kill
    #: (SERVICE_<NAME>_UPLOAD_URL, _DOWNLOAD_URL, _TERMINATE_URL).
    clients: tuple[ClientAddress, ...]
    #: SERVICE_<NAME>_RUNS_PER_USER: active jobs of one user.
    runs_per_user: int = 5
    #: SERVICE_<NAME>_MAX_RUNS: active jobs of all users; None: the slots of its clients.
    max_runs: int | None = None
    #: SERVICE_<NAME>_MAX_ATTEMPTS: payloads of one job that may be lost.
    max_attempts: int = 3
    #: SERVICE_<NAME>_MAX_RUNTIME: seconds that one attempt may run; None: as long as it likes.
    max_runtime: float | None = None
    #: SERVICE_<NAME>_RETRY_EXIT_CODES: with which run.sh says that the infrastructure failed.
    retry_exit_codes: frozenset[int] = frozenset()
    #: SERVICE_<NAME>_MAX_AGE: seconds a job's files are kept after its end.
    max_age: float = 172800.0


def served_by(services: Mapping[str, Service], address: ClientAddress) -> list[str]:
    """The services whose jobs may go to the client at this address."""
    return [name for name, service in services.items() if address in service.clients]


@dataclass(frozen=True, slots=True)
class Config:
    """The settings of orch-server, each named as its variable in lower case.

    Sizes are bytes, times seconds.
    """

    host: str
    port: int
    db_path: Path
    data_path: Path
    max_age: float
    max_upload_size: int
    min_free_disk: int
    sender_interval: float
    getter_interval: float
    cleaner_interval: float
    client_lost_after: float
    client_gone_after: float
    client_give_up_after: float
    log_level: str
    services: Mapping[str, Service]
    #: What clients want to hear with each request (CLIENT_TOKEN_FILE); None: nothing.
    client_token: ClientToken | None = None
    api_compat: ApiCompat = ApiCompat.OFF
    #: Variables that look like a service's setting but are none.
    ignored: tuple[str, ...] = ()

    @classmethod
    def from_env(cls, host: str | None = None, port: str | None = None) -> "Config":
        """Read the environment; `host` and `port` are flags, and override it.

        Raises:
            SettingError: a setting cannot be used; it names the setting.
        """
        env = Env()
        if host is not None:
            os.environ["HOST"] = host
        if port is not None:
            os.environ["PORT"] = port
        max_age = read(env, "MAX_AGE", settings.seconds, "172800")
        services, ignored = _services(env, max_age)
        return cls(
            host=read(env, "HOST", str, "127.0.0.1"),
            port=read(env, "PORT", settings.port, "5000"),
            db_path=read(env, "DB_PATH", settings.path, "./orch-server.sqlite"),
            data_path=read(env, "DATA_PATH", settings.path, "./server-data"),
            max_age=max_age,
            max_upload_size=read(env, "MAX_UPLOAD_SIZE", settings.size, "400MiB"),
            min_free_disk=read(env, "MIN_FREE_DISK", settings.size, "1GiB"),
            sender_interval=read(env, "SENDER_INTERVAL", settings.interval, "0.5"),
            getter_interval=read(env, "GETTER_INTERVAL", settings.interval, "0.5"),
            cleaner_interval=read(env, "CLEANER_INTERVAL", settings.interval, "60"),
            client_lost_after=read(env, "CLIENT_LOST_AFTER", settings.interval, "15"),
            client_gone_after=read(env, "CLIENT_GONE_AFTER", settings.seconds, "600"),
            client_give_up_after=read(env, "CLIENT_GIVE_UP_AFTER", settings.seconds, "7d"),
            log_level=read(env, "LOG_LEVEL", settings.log_level, "info"),
            services=services,
            client_token=read(
                env, "CLIENT_TOKEN_FILE", settings.optional(ClientToken.from_file), ""
            ),
            api_compat=read(env, "API_COMPAT", settings.one_of(ApiCompat), "off"),
            ignored=ignored,
        )


def _services(env: Env, max_age: float) -> tuple[dict[str, Service], tuple[str, ...]]:
    found: dict[str, dict[str, str]] = {}
    ignored: list[str] = []
    for variable in sorted(os.environ):
        if not variable.upper().startswith("SERVICE_"):
            continue
        rest = variable[len("SERVICE_") :]
        known = [s for s in SERVICE_SETTINGS if rest.upper().endswith("_" + s)]
        if not known:
            ignored.append(variable)
            continue
        suffix = max(known, key=len)
        name = service_name(rest[: -len(suffix) - 1])
        if not name:
            ignored.append(variable)
            continue
        if not os.environ[variable].strip():
            continue
        own = found.setdefault(name, {})
        if suffix in own:
            raise SettingError(setting=variable, problem=f"{own[suffix]} says the same; keep one")
        own[suffix] = variable
    return {
        name: _service(env, name, variables, max_age) for name, variables in found.items()
    }, tuple(ignored)


def _service(env: Env, name: str, variables: Mapping[str, str], max_age: float) -> Service:
    def variable(suffix: str) -> str:
        return variables.get(suffix, f"SERVICE_{name.upper()}_{suffix}")

    own_max_age = read(env, variable("MAX_AGE"), settings.optional(settings.seconds), "")
    return Service(
        name=name,
        clients=_clients(env, variables, variable),
        runs_per_user=read(env, variable("RUNS_PER_USER"), settings.positive, "5"),
        max_runs=read(env, variable("MAX_RUNS"), settings.optional(settings.positive), ""),
        max_attempts=read(env, variable("MAX_ATTEMPTS"), settings.positive, "3"),
        max_runtime=read(env, variable("MAX_RUNTIME"), settings.optional(settings.interval), ""),
        retry_exit_codes=read(env, variable("RETRY_EXIT_CODES"), settings.exit_codes, ""),
        max_age=max_age if own_max_age is None else own_max_age,
    )


def _clients(
    env: Env, variables: Mapping[str, str], variable: Callable[[str], str]
) -> tuple[ClientAddress, ...]:
    bases = read(env, variable("URL"), settings.urls, "")
    uploads = read(env, variable("UPLOAD_URL"), settings.urls, "")
    downloads = read(env, variable("DOWNLOAD_URL"), settings.urls, "")
    kills = read(env, variable("TERMINATE_URL"), settings.urls, "")
    if bases and (uploads or downloads or kills):
        beside = next(s for s in SERVICE_SETTINGS[:3] if s in variables)
        raise SettingError(
            setting=variable("URL"), problem=f"{variable(beside)} is set beside it; keep one way"
        )
    if bases:
        return _distinct(variable("URL"), tuple(map(ClientAddress.from_base, bases)))
    if not uploads:
        raise SettingError(
            setting=variable("URL"), problem="the service has no client; name the URLs of some"
        )
    for suffix, others in (("DOWNLOAD_URL", downloads), ("TERMINATE_URL", kills)):
        if others and len(others) != len(uploads):
            raise SettingError(
                setting=variable(suffix),
                problem=f"it names {len(others)} clients, {variable('UPLOAD_URL')} "
                f"names {len(uploads)}",
            )
    for url in uploads:
        if URL(url).path == "/":
            raise SettingError(
                setting=variable("UPLOAD_URL"), problem=f"'{url}' has no path such as {SUBMIT}"
            )
    own = [ClientAddress.from_base(url.rpartition("/")[0]) for url in uploads]
    return _distinct(
        variable("UPLOAD_URL"),
        tuple(
            ClientAddress(
                client.base,
                uploads[i],
                downloads[i] if downloads else client.retrieve,
                kills[i] if kills else client.kill,
            )
            for i, client in enumerate(own)
        ),
    )


def _distinct(setting: str, clients: tuple[ClientAddress, ...]) -> tuple[ClientAddress, ...]:
    bases = [client.base for client in clients]
    if len(set(bases)) < len(bases):
        raise SettingError(setting=setting, problem="it names a client twice")
    return clients
