"""What the end of run.sh means for its payload: state, fault, and a reason for a person."""

import signal

from orchestrator_client.executors.base import RunEnd
from orchestrator_client.payloads import PayloadEnd
from orchestrator_shared.status import PayloadStatus

#: Why a payload that runs is handed back.
STOPPED = "the client stopped"
NO_RUN_SH = PayloadEnd(
    PayloadStatus.INVALID, fault="user", reason="there is no run.sh among its files"
)
KILLED_BEFORE_START = PayloadEnd(
    PayloadStatus.KILLED, fault="operator", reason="terminated before it was started"
)


def handed_back(why: str) -> PayloadEnd:
    """The end of a payload that the client gives up: it is to run elsewhere, or later."""
    return PayloadEnd(
        PayloadStatus.FAILED,
        fault="infrastructure",
        reason=why,
        lost=True,
        handed_back=True,
    )


LOST_WITH_MACHINE = PayloadEnd(
    PayloadStatus.FAILED,
    fault="infrastructure",
    reason="its machine went down before its server had its end",
    lost=True,
)


def cannot_be_packed(problem: object) -> PayloadEnd:
    """The end of a payload whose files cannot be had."""
    reason = f"its files cannot be packed: {problem}"
    return PayloadEnd(PayloadStatus.FAILED, fault="infrastructure", reason=reason, lost=True)


def judge(end: RunEnd, *, windows_lines: bool) -> PayloadEnd:
    """The end of a payload; `windows_lines`: whether run.sh has CRLF line ends."""
    if end.cause == "hand_back":
        return handed_back(STOPPED)
    if end.no_room:
        # It goes on once there is room, here or elsewhere: meanwhile this client takes nothing.
        return handed_back(str(end.error))
    status, fault, reason = _verdict(end, windows_lines)
    if end.stuck:
        reason += "; processes of it are still there after SIGKILL"
    return PayloadEnd(
        status,
        exit_code=end.exit_code,
        fault=fault,
        reason=reason,
        lost=fault == "infrastructure" and end.exit_code is None,
        wall_s=end.wall_s,
        cpu_s=end.cpu_s,
        max_rss=end.max_rss,
    )


def _verdict(end: RunEnd, windows_lines: bool) -> tuple[PayloadStatus, str | None, str]:
    if end.cause == "operator":
        return PayloadStatus.KILLED, "operator", "terminated on request"
    if end.cause == "limit":
        return PayloadStatus.FAILED, "limit", f"run.sh ran longer than {end.limit}"
    if end.lost:
        reason = "its machine or its supervisor went down while it ran"
        return PayloadStatus.FAILED, "infrastructure", reason
    if end.error is not None:
        return PayloadStatus.FAILED, "infrastructure", end.error
    if end.exit_code == 0:
        return PayloadStatus.COMPLETED, None, "run.sh ended with 0"
    if end.oom:
        reason = "out of memory: the system killed it (SIGKILL)"
        return PayloadStatus.FAILED, "limit", reason
    if end.signal == signal.SIGKILL:
        reason = "run.sh was killed from outside (SIGKILL)"
        return PayloadStatus.FAILED, "infrastructure", reason
    if end.signal is not None:
        name = signal.strsignal(end.signal) or "unknown"
        reason = f"run.sh was ended by signal {end.signal} ({name})"
        return PayloadStatus.FAILED, "user", reason
    reason = f"run.sh ended with exit status {end.exit_code}"
    if windows_lines:
        reason += "; it has Windows line ends (CRLF), which bash cannot read: save it with LF"
    return PayloadStatus.FAILED, "user", reason
