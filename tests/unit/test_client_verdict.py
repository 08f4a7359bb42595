"""What the end of run.sh means for its payload."""

import signal

import pytest

from orchestrator_client.executors.base import RunEnd
from orchestrator_client.verdict import judge
from orchestrator_shared.status import PayloadStatus


def judged(end: RunEnd, *, windows_lines: bool = False) -> tuple[
    str, str | None, str | None, bool
]:  # fmt: skip
    """State, fault, reason, and whether it is lost."""
    verdict = judge(end, windows_lines=windows_lines)
    return verdict.status.value, verdict.fault, verdict.reason, verdict.lost


@pytest.mark.parametrize(
    ("end", "status", "fault", "says", "lost"),
    [
        (RunEnd(exit_code=0), "Completed", None, "ended with 0", False),
        (RunEnd(exit_code=1), "Failed", "user", "exit status 1", False),
        (RunEnd(exit_code=255), "Failed", "user", "exit status 255", False),
        (RunEnd(exit_code=137), "Failed", "user", "exit status 137", False),
        (RunEnd(exit_code=139, signal=11), "Failed", "user", "signal 11", False),
        (RunEnd(exit_code=137, signal=9), "Failed", "infrastructure", "SIGKILL", False),
        (RunEnd(exit_code=0, cause="operator"), "Killed", "operator", "on request", False),
        (RunEnd(exit_code=143, signal=15, cause="operator"), "Killed", "operator", "", False),
        (RunEnd(lost=True, cause="operator"), "Killed", "operator", "", False),
        (
            RunEnd(exit_code=0, cause="limit", limit="5 s (JOB_TIMEOUT)"),
            "Failed",
            "limit",
            "longer than 5 s (JOB_TIMEOUT)",
            False,
        ),
        (RunEnd(exit_code=137, signal=9, oom=True), "Failed", "limit", "out of memory", False),
        (RunEnd(exit_code=137, oom=True), "Failed", "limit", "out of memory", False),
        (RunEnd(cause="operator", stuck=True), "Killed", "operator", "still there", False),
        (
            RunEnd(cause="limit", limit="5 s (JOB_TIMEOUT)", stuck=True),
            "Failed",
            "limit",
            "still there",
            False,
        ),
        (
            RunEnd(exit_code=0, cause="hand_back"),
            "Failed",
            "infrastructure",
            "client stopped",
            True,
        ),
        (RunEnd(error="no room", no_room=True), "Failed", "infrastructure", "no room", True),
        (RunEnd(lost=True, cause="hand_back"), "Failed", "infrastructure", "client stopped", True),
        (RunEnd(lost=True), "Failed", "infrastructure", "went down", True),
        (RunEnd(error="no bash"), "Failed", "infrastructure", "no bash", True),
    ],
)
def test_an_end_is_judged(
    end: RunEnd, status: str, fault: str | None, says: str, lost: bool
) -> None:
    """Whose wish it was counts before the exit status; only what nobody knows is lost."""
    found = judged(end)

    assert (found[0], found[1], found[3]) == (status, fault, lost)
    assert says in (found[2] or "")


def test_windows_line_ends_are_named_where_run_sh_fails() -> None:
    """A user who saved run.sh on Windows is told so."""
    assert "CRLF" in str(judged(RunEnd(exit_code=127), windows_lines=True)[2])
    assert "CRLF" not in str(judged(RunEnd(exit_code=127), windows_lines=False)[2])


def test_only_what_the_client_gave_up_is_handed_back() -> None:
    """Whatever its run.sh came to; it has no exit status then."""
    given_up = judge(RunEnd(exit_code=143, signal=15, cause="hand_back"), windows_lines=False)
    no_room = judge(RunEnd(error="no room", no_room=True), windows_lines=False)
    lost = judge(RunEnd(lost=True), windows_lines=False)

    assert (given_up.handed_back, given_up.exit_code) == (True, None)
    assert no_room.handed_back is True
    assert lost.handed_back is False


@pytest.mark.parametrize("number", sorted(signal.valid_signals()))
def test_every_signal_has_a_reason(number: int) -> None:
    """Real-time signals have no name of their own."""
    verdict = judge(RunEnd(exit_code=128 + number, signal=number), windows_lines=False)

    assert verdict.status is PayloadStatus.FAILED
    assert verdict.reason


def test_what_was_measured_is_kept() -> None:
    """Exit status, times and memory go along."""
    end = RunEnd(exit_code=3, wall_s=1.5, cpu_s=0.5, max_rss=4096)

    verdict = judge(end, windows_lines=False)

    assert (verdict.exit_code, verdict.wall_s, verdict.cpu_s, verdict.max_rss) == (
        3,
        1.5,
        0.5,
        4096,
    )
