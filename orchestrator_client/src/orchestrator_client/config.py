"""The client's settings, from the environment."""

import os
import resource
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from environs import Env

from orchestrator_shared import settings
from orchestrator_shared.client_token import ClientToken
from orchestrator_shared.errors import SettingError
from orchestrator_shared.protocol import service_name
from orchestrator_shared.settings import read


class OnStop(StrEnum):
    """What becomes of payloads when the client is told to stop (ON_STOP)."""

    LEAVE = "leave"
    HAND_BACK = "hand-back"
    FINISH = "finish"


class LegacyWire(StrEnum):
    """As which client a server is answered that sends none of our headers (LEGACY_WIRE)."""

    OFF = "off"
    V1 = "v1"
    V2 = "v2"


@dataclass(frozen=True, slots=True)
class Config:
    """The settings of orch-client, each named as its variable in lower case.

    Sizes are bytes, times seconds.
    """

    host: str
    port: int
    data_path: Path
    #: A file, or `:memory:`.
    db_path: str
    slots: int
    cpus_per_slot: int
    job_env: tuple[str, ...]
    runner_interval: float
    max_age: float
    unclaimed_max_age: float
    min_free_disk: int
    log_level: str
    job_timeout: float | None
    kill_grace: float
    #: The only service whose jobs are taken; None: any.
    service: str | None = None
    #: What says whether this machine is fit for work, for `bash -c`.
    check: str | None = None
    on_stop: OnStop = OnStop.LEAVE
    stop_grace: float = 0.0
    #: What whoever asks has to know (CLIENT_TOKEN_FILE); None: nothing.
    client_token: ClientToken | None = None
    legacy_wire: LegacyWire = LegacyWire.OFF
    #: How many files a job may open: the soft limit that the client itself was started with.
    open_files: int = 1024

    @classmethod
    def from_env(cls, host: str | None = None, port: str | None = None) -> "Config":
        """Read the environment; `host` and `port` are flags, and override it.

        Raises:
            SettingError: a setting cannot be used; it names the setting.
        """
        config = cls._read(Env(), host, port)
        if config.client_token is not None and config.legacy_wire is not LegacyWire.OFF:
            problem = (
                "a server of the original cannot send the token of CLIENT_TOKEN_FILE, so nothing "
                "of it would be answered; set one of the two"
            )
            raise SettingError(setting="LEGACY_WIRE", problem=problem)
        return config

    @classmethod
    def _read(cls, env: Env, host: str | None, port: str | None) -> "Config":
        if host is not None:
            os.environ["HOST"] = host
        if port is not None:
            os.environ["PORT"] = port
        cpus_per_slot = read(env, "CPUS_PER_SLOT", settings.positive, "1")
        slots = max(1, len(os.sched_getaffinity(0)) // cpus_per_slot)
        return cls(
            host=read(env, "HOST", str, "127.0.0.1"),
            port=read(env, "PORT", settings.port, "9000"),
            data_path=read(env, "DATA_PATH", settings.path, "./client-data"),
            db_path=read(env, "DB_PATH", str, ":memory:"),
            slots=read(env, "SLOTS", settings.positive, str(slots)),
            cpus_per_slot=cpus_per_slot,
            job_env=read(env, "JOB_ENV", settings.names, ""),
            runner_interval=read(env, "RUNNER_INTERVAL", settings.interval, "0.5"),
            max_age=read(env, "MAX_AGE", settings.seconds, "172800"),
            unclaimed_max_age=read(env, "UNCLAIMED_MAX_AGE", settings.seconds, "30d"),
            min_free_disk=read(env, "MIN_FREE_DISK", settings.size, "1GiB"),
            log_level=read(env, "LOG_LEVEL", settings.log_level, "info"),
            job_timeout=read(env, "JOB_TIMEOUT", settings.optional(settings.interval), ""),
            kill_grace=read(env, "KILL_GRACE", settings.seconds, "10"),
            service=read(env, "SERVICE", settings.optional(service_name), ""),
            check=read(env, "CHECK", settings.optional(str), ""),
            on_stop=read(env, "ON_STOP", settings.one_of(OnStop), "leave"),
            stop_grace=read(env, "STOP_GRACE", settings.seconds, "0"),
            client_token=read(
                env, "CLIENT_TOKEN_FILE", settings.optional(ClientToken.from_file), ""
            ),
            legacy_wire=read(env, "LEGACY_WIRE", settings.one_of(LegacyWire), "off"),
            open_files=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        )
