"""Says with which random moments the faults came; what carries the mark `faults` takes long."""

import pytest

from acceptance.faults.world import SCALE, SEED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What makes a run the same again."""
    terminalreporter.write_line(f"faults: FAULTS_SEED={SEED} FAULTS_SCALE={SCALE}")
