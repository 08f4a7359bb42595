"""The soak, for a moment: so that it works when somebody wants it for a night."""

from pathlib import Path

import pytest

from acceptance.faults.soak import FAULTS, addresses_change, client_dies, server_dies, soak
from acceptance.faults.world import PATIENCE, SCALE, SEED

pytestmark = pytest.mark.timeout(300 + 2 * PATIENCE)


async def test_a_soak_keeps_the_promise(tmp_path: Path) -> None:
    """Nothing is lost, wrong or run twice; what takes long to notice comes in the long size."""
    faults = (addresses_change, client_dies, server_dies) if SCALE == 1 else FAULTS
    outcome = await soak(tmp_path, 3.0 * SCALE, SEED, faults)
    assert outcome.kept, "\n".join([outcome.tables(), *outcome.problems])
    assert outcome.counters.jobs
    assert outcome.faults.total()
    assert f"| {outcome.counters.jobs} |" in outcome.tables()
