"""One payload at a client of the original: what the answers to /retrieve say of it."""

import time
from dataclasses import dataclass
from typing import Any, Final

from msgspec.structs import replace

from orchestrator_server.clients.original.exchange import Answer, read_field
from orchestrator_server.store.job import Job
from orchestrator_shared.messages import PackedResult, PayloadState
from orchestrator_shared.status import PAYLOAD_ENDED, PayloadStatus

_LIVE: Final = {"Prepared": PayloadStatus.PREPARED, "Running": PayloadStatus.RUNNING}
#: How a client of version 1 says that a payload has failed; without run.sh it says 400.
_FAILED_V1: Final = (204, 410, 500)
_INVALID: Final = (
    "its client calls it invalid: it has no run.sh, or, with a client of version 2, one that does "
    "not mention trap, .orchestrator.exit and EXIT"
)
#: What stands for a digest that is not known before the file is here.
_UNKNOWN_DIGEST: Final = "0" * 64


@dataclass
class Followed:
    """A payload of this server there."""

    job: int
    attempt: int
    payload: int
    #: How long it may run (seconds), and since when it does (monotonic seconds).
    limit_s: float | None
    since: float | None = None
    #: What was last said of it.
    said: PayloadState | None = None
    #: How often it was unknown, one look after the other.
    missing: int = 0
    #: Why it is lost, where that is not for its client to say: its id is another's by now.
    gone: str = ""

    @classmethod
    def of(cls, job: Job, payload: int, limit_s: float | None) -> "Followed":
        """What a job of this server's has there."""
        followed = cls(job.id, job.attempt, payload, limit_s)
        if job.started_at is not None:
            followed.since = time.monotonic() - max(0.0, time.time() - job.started_at)
        return followed

    @property
    def key(self) -> tuple[int, int]:
        """Job and attempt."""
        return self.job, self.attempt

    @property
    def is_over(self) -> bool:
        """Whether its end has been said."""
        return self.said is not None and self.said.status in PAYLOAD_ENDED

    @property
    def is_due(self) -> bool:
        """Whether it has run for as long as it may."""
        if self.limit_s is None or self.since is None:
            return False
        return time.monotonic() - self.since > self.limit_s

    def judge(self, version: str, answer: Answer) -> PayloadState | None:
        """What an answer says of it; None: nothing."""
        missing, self.missing = self.missing, 0
        status = answer.status
        if answer.is_zip:
            # Its bytes are asked for once there is room.
            return self.state(PayloadStatus.COMPLETED, size=answer.size)
        if status == 202:
            return self._live(PayloadStatus.RUNNING)
        if status == 200 and answer.content_type == "application/json":
            return self._judge_json(answer.body)
        if answer.is_own_404(version):
            self.missing = missing + 1
            return self.lost("its client does not know it any more") if missing else None
        if version == "1" and status in _FAILED_V1:
            return self.failed("user", f"its client answers {status}")
        if version == "1" and status == 400:
            return self.state(PayloadStatus.INVALID, fault="user", reason=_INVALID)
        return None

    def _judge_json(self, body: bytes) -> PayloadState | None:
        """As version 2 answers while there is no zip. It shows what there is of a payload that has
        failed or was killed on another route."""
        status = read_field(body, "status")
        if isinstance(status, str) and status in _LIVE:
            return self._live(_LIVE[status])
        if status == "Invalid":
            return self.state(PayloadStatus.INVALID, fault="user", reason=_INVALID)
        if status == "Failed":
            return self.failed("user", "run.sh failed, as its client says", size=0)
        if status == "Killed":
            return self.state(
                PayloadStatus.KILLED, size=0, fault="operator", reason="terminated on request"
            )
        return None

    def _live(self, status: PayloadStatus) -> PayloadState:
        if status is PayloadStatus.RUNNING and self.since is None:
            self.since = time.monotonic()
        return self.state(status)

    def lost(self, reason: str) -> PayloadState:
        """Its client has lost it."""
        return self.state(PayloadStatus.FAILED, lost=True, reason=reason)

    def over_limit(self) -> PayloadState:
        """It has run for too long."""
        reason = f"it ran for longer than {self.limit_s:g} s (SERVICE_…_MAX_RUNTIME)"
        return self.failed("limit", reason, size=0)

    def failed(self, fault: str, reason: str, size: int | None = None) -> PayloadState:
        """It has failed."""
        return self.state(PayloadStatus.FAILED, size=size, fault=fault, reason=reason)

    def state(self, status: PayloadStatus, *, size: int | None = None, **more: Any) -> PayloadState:
        """How it is. `size`: it has files, of so many bytes as far as that is known."""
        return PayloadState(
            id=self.payload,
            status=status,
            loc="",
            pid=0,
            killed=status is PayloadStatus.KILLED,
            job=self.job,
            attempt=self.attempt,
            result=None if size is None else PackedResult(size=size, sha256=_UNKNOWN_DIGEST),
            **more,
        )


def with_files(payload: PayloadState, packed: PackedResult, code: int | None) -> PayloadState:
    """A payload as its files show it. A client of version 1 does not look at the exit status."""
    payload = replace(payload, result=packed, exit_code=code)
    if payload.status is PayloadStatus.COMPLETED and code:
        reason = f"run.sh ended with exit status {code}"
        return replace(payload, status=PayloadStatus.FAILED, fault="user", reason=reason)
    return payload
