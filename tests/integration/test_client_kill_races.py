"""A kill that comes in the instant in which run.sh ends by itself."""

import asyncio
import io
import random
import zipfile
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from support.agent import Agent, agent
from support.follower import ENDS
from support.portal import Answer

#: Altogether a thousand tries.
SEEDS = range(4)
BATCHES = 5
TRIES = 50


@pytest.fixture
async def client(tmp_path: Path, session: aiohttp.ClientSession) -> AsyncIterator[Agent]:
    """A client with nearly as many slots as there are tries at a time: some have to wait."""
    changes = {"slots": TRIES - 10, "kill_grace": 0.05}
    async with agent(tmp_path / "client", session, **changes) as own:
        yield own


@dataclass
class Try:
    """What run.sh ends with by itself after some work, and when it is killed."""

    number: int
    exit_code: int
    work: int
    trap: str
    #: How long after its submit it is killed (seconds), or the states that are waited for.
    moment: float | tuple[str, ...]

    @property
    def script(self) -> str:
        """It leaves a line when it begins, and one right before its end."""
        return (
            f"{self.trap}\necho begun >> begun\nfor ((i = 0; i < {self.work}; i++)); do :; done\n"
            f"echo done > done\nexit {self.exit_code}"
        )


def draw(rng: random.Random, number: int) -> Try:
    """A try whose kill comes around its end."""
    moments: list[float | tuple[str, ...]] = [0.0, ENDS, ("Running", *ENDS)]
    return Try(
        number=number,
        exit_code=rng.choice([0, 0, 0, 3]),
        work=rng.choice([0, 10, 500, 2000]),
        trap=rng.choice(["", "", "trap '' TERM", "trap 'exit 0' TERM", "trap 'echo x > x' TERM"]),
        moment=rng.choice(moments + [rng.random() * 0.06] * 7),
    )


async def carry_out(client: Agent, one: Try) -> tuple[Answer, dict[str, Any]]:
    """Submit, kill, and wait for the end."""
    payload = await client.submit(one.script, job=one.number)
    if isinstance(one.moment, float):
        # When the kill comes is drawn; nothing is waited for here.
        await asyncio.sleep(one.moment)
    else:
        await client.stream.state(payload["id"], *one.moment)
    answer = await client.kill(payload["id"])
    return answer, await client.stream.ended(payload["id"])


async def check(client: Agent, one: Try, answer: Answer, end: dict[str, Any]) -> None:
    """One end, that agrees with what /kill answered and with what run.sh did."""
    told = {
        frame.payload["status"]
        for frame in client.stream.frames
        if frame.kind == "state"
        and frame.payload["id"] == end["id"]
        and frame.payload["status"] in ENDS
    }
    assert told == {end["status"]}
    assert answer.status in (200, 409)
    assert (answer.status == 200) == (end["status"] == "Killed")
    frame = await client.stream.state(end["id"], end["status"])
    result = zipfile.ZipFile(io.BytesIO(frame.body))
    names = set(result.namelist())
    if end["reason"] == "terminated before it was started":
        assert "begun" not in names
        assert ".orchestrator/exit_code" not in names
    elif "begun" in names:
        # Once, if it got that far.
        assert b"begun\n".startswith(result.read("begun"))
    if end["status"] == "Completed":
        assert (end["exit_code"], one.exit_code) == (0, 0)
        assert "done" in names
        assert (await client.retrieve(end["id"])).status == 200
    elif end["status"] == "Failed":
        assert end["exit_code"] == one.exit_code == 3
        assert "done" in names


@pytest.mark.parametrize("seed", SEEDS)
async def test_a_kill_and_an_end_are_one_end(client: Agent, seed: int) -> None:
    """Each payload ends exactly once, and /kill has said how."""
    rng = random.Random(seed)
    ends: Counter[str] = Counter()
    for batch in range(BATCHES):
        tries = [draw(rng, batch * TRIES + number) for number in range(TRIES)]
        done = await asyncio.gather(*(carry_out(client, one) for one in tries))
        for one, (answer, end) in zip(tries, done, strict=True):
            ends[end["status"]] += 1
            try:
                await check(client, one, answer, end)
            except AssertionError as error:
                raise AssertionError(f"seed {seed}: {one}: {answer}: {end}") from error
    # Both were first in many tries, or nothing was tried.
    assert ends["Killed"] > 10, f"seed {seed}: {ends}"
    assert ends["Completed"] > 10, f"seed {seed}: {ends}"
