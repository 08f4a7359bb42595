"""The connection between server and client ends in every message: before, in, and after it."""

from pathlib import Path

import pytest

from acceptance.faults.messages import ALL, KILLS, provoke
from acceptance.faults.world import PATIENCE, SCALE, world
from support.faults import Cut

pytestmark = pytest.mark.timeout(60 + 2 * PATIENCE)

PLACES = {"before": 0, "in": 0.5, "after": 1.0}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
async def test_a_message_that_is_cut_off_changes_nothing(tmp_path: Path, place: float) -> None:
    """Whatever message it is, the job ends once, in its first attempt or surely unstarted ones."""
    async with world(tmp_path) as there:
        for target in ALL * SCALE:
            rule = target.rule(Cut(place))
            await provoke(there, target, rule)
            await there.ended()
        counters = await there.settled()
        assert counters.kept
        assert not there.checker.run_again(), "nothing died, so nothing is run again"


async def test_a_kill_that_is_cut_off_is_told_again(tmp_path: Path) -> None:
    """The wish is kept: the job is Killed although nothing else ever ends it."""
    async with world(tmp_path, clients=1) as there:
        for target in KILLS * SCALE:
            for place in PLACES.values():
                await provoke(there, target, target.rule(Cut(place)))
                await there.ended(within=20)
        await there.settled()
