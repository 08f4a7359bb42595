"""Random faults over two clients for some minutes, and a table of what became of all jobs.

PYTHONPATH=tests .venv/bin/python -m acceptance.faults.soak MINUTES [SEED]

It says its seed (or takes it, also from FAULTS_SEED), prints its tables as Markdown, and its exit
status is 1 if a job was lost, ran twice in one attempt, or has a wrong result.
"""

import argparse
import asyncio
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from acceptance.faults.disks import files_end_at, locked
from acceptance.faults.load import any_work
from acceptance.faults.messages import ALL, KILLS
from acceptance.faults.world import (
    LARGE,
    SEED,
    World,
    kill_container,
    kill_supervisor,
    processes_in,
    send_signal,
    world,
)
from support.checker import Counters
from support.faults import Cut, Delay, Fault, Flip, Rule, Slow, Stall, Twice

#: The longest soak (minutes).
LONGEST: Final = 30.0
#: The share of its time in which faults come: in the rest the last jobs end.
WITH_FAULTS: Final = 0.9
#: How long it waits for the last jobs at least (seconds).
LAST_PATIENCE: Final = 120.0
#: Between two faults (seconds): at least, at most.
PAUSES: Final = (0.05, 1.0)
PORTALS: Final = 3
#: Jobs of one portal that have not ended yet, at most: more would only wait.
UNDER_WAY: Final = 10
#: So long without a word a client is gone, and its jobs are handed over (seconds).
GONE_AFTER: Final = 7.0


async def server_dies(there: World) -> None:
    await there.kill_server()
    await there.server.start()


async def client_dies(there: World) -> None:
    client = there.random.choice(there.clients)
    await client.stop(signal.SIGKILL)
    await client.start()


async def supervisor_dies(there: World) -> None:
    await kill_supervisor(there.random.choice(there.clients))


async def container_dies(there: World) -> None:
    client = there.random.choice(there.clients)
    await kill_container(client)
    await client.start()


async def both_die(there: World) -> None:
    client = there.random.choice(there.clients)
    await asyncio.gather(there.kill_server(), client.stop(signal.SIGKILL))
    await asyncio.gather(there.server.start(), client.start())


async def client_stops(there: World) -> None:
    client = there.random.choice(there.clients)
    await client.stop(signal.SIGTERM)
    await client.start()


async def server_stops(there: World) -> None:
    await there.server.stop(signal.SIGTERM)
    await there.server.start()


async def client_freezes(there: World) -> None:
    """For a moment, or for so long that it counts as lost."""
    client = there.random.choice(there.clients)
    frozen = processes_in(client.folder)
    send_signal(frozen, signal.SIGSTOP)
    await asyncio.sleep(there.random.choice([0.5, 2.0, 8.0]))
    send_signal(frozen, signal.SIGCONT)


async def client_is_cut_off(there: World) -> None:
    proxy = there.random.choice(there.proxies)
    await proxy.down()
    await asyncio.sleep(there.random.choice([0.1, 1.0, 8.0]))
    await proxy.up()


async def client_goes_silent(there: World) -> None:
    proxy = there.random.choice(there.proxies)
    proxy.stall()
    await asyncio.sleep(there.random.choice([0.5, 8.0]))
    proxy.unstall()


async def addresses_change(there: World) -> None:
    first, second = there.proxies
    first.target, second.target = second.target, first.target
    first.cut()
    second.cut()


async def server_cannot_write(there: World) -> None:
    """Nothing at all, or nothing large: where it did not end because of that, it is ended."""
    with files_end_at(there.server, there.random.choice([0, LARGE // 2])):
        await asyncio.sleep(there.random.uniform(0.0, 1.0))
    await server_dies(there)


async def database_is_locked(there: World) -> None:
    async with locked(there.checker.database):
        await asyncio.sleep(there.random.uniform(0.1, 3.0))


async def message_is_harmed(there: World) -> None:
    """One of any kind; what is damaged is a result, which has a digest."""
    target = there.random.choice((*ALL, *KILLS))
    place = there.random.random()
    faults: list[Fault] = [Cut(place), Stall(place), Slow(1024, 2048), Delay(1.0)]
    if " " not in target.kind:
        faults.append(Twice())
    fault = there.random.choice(faults)
    there.harm(target.rule(fault))
    if there.random.random() < 0.3:
        there.harm(Rule("GET /result answer", Flip(0.5)))


Harm = Callable[[World], Awaitable[None]]

FAULTS: Final[tuple[Harm, ...]] = (
    server_dies,
    client_dies,
    supervisor_dies,
    container_dies,
    both_die,
    client_stops,
    server_stops,
    client_freezes,
    client_is_cut_off,
    client_goes_silent,
    addresses_change,
    server_cannot_write,
    database_is_locked,
    *(message_is_harmed,) * 8,
)


async def _portal(there: World, user_id: int, until: float) -> None:
    """Uploads and ends jobs, without ever getting far ahead."""
    under_way: deque[int] = deque()
    while time.monotonic() < until:
        own = any_work(there)
        id = await there.upload(own, user_id)
        if own.label == "killed":
            await there.terminate(id)
        under_way.append(id)
        if len(under_way) == UNDER_WAY:
            await there.portal.ended(under_way.popleft())


@dataclass
class Outcome:
    """What a soak did, and what came of it."""

    seed: int
    minutes: float
    faults: Counter[str]
    counters: Counters
    problems: list[str]

    @property
    def kept(self) -> bool:
        """Whether the promise was."""
        return self.counters.kept and not self.problems

    def tables(self) -> str:
        """In Markdown."""
        counted = self.counters
        cells = {
            "seed": self.seed,
            "minutes": f"{self.minutes:.1f}",
            "faults injected": self.faults.total(),
            "jobs": counted.jobs,
            "ends": ", ".join(f"{count} {end}" for end, count in counted.ends.most_common()),
            "attempts": counted.attempts,
            "extra runs": counted.extra_runs,
            "lost": counted.lost,
            "wrong results": counted.wrong,
            "attempts started twice": counted.double_runs,
        }
        kinds = [(name, count) for name, count in self.faults.most_common()]
        return "\n\n".join(
            [_table(list(cells), [cells.values()]), _table(["fault", "times"], kinds)]
        )


def _table(head: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


async def soak(root: Path, seconds: float, seed: int, kinds: Sequence[Harm] = FAULTS) -> Outcome:
    """Faults for nearly so many seconds, and then no more until all jobs have ended."""
    faults: Counter[str] = Counter()
    begin = time.monotonic()
    async with world(root, server={"CLIENT_GONE_AFTER": f"{GONE_AFTER:g}"}) as there:
        there.random = random.Random(seed)
        until = begin + WITH_FAULTS * seconds
        portals = [asyncio.create_task(_portal(there, n, until)) for n in range(1, PORTALS + 1)]
        while time.monotonic() < until:
            await asyncio.sleep(there.random.uniform(*PAUSES))
            fault = there.random.choice(kinds)
            await fault(there)
            faults[fault.__name__.replace("_", " ")] += 1
        for proxy in there.proxies:
            proxy.rules.clear()
            # What a rule holds yet is not let go by that.
            proxy.cut()
        problems = []
        try:
            left = max(LAST_PATIENCE, begin + seconds - time.monotonic())
            async with asyncio.timeout(left):
                await asyncio.gather(*portals)
            await there.ended(left)
        except (AssertionError, TimeoutError) as error:
            problems.append(f"{type(error).__name__} {error}")
        counters, found = there.checker.look()
        if problems or found:
            for program in (there.server, *there.clients):
                sys.stderr.write(f"--- {program.folder.name}\n" + "\n".join(program.log[-400:]))
    minutes = (time.monotonic() - begin) / 60
    return Outcome(seed, minutes, faults, counters, problems + found)


def main(minutes: float, seed: int) -> int:
    """Soak, print the tables, and give back 1 if the promise was broken."""
    print(f"FAULTS_SEED={seed}", file=sys.stderr, flush=True)
    root = Path(tempfile.mkdtemp(prefix="soak-"))
    try:
        outcome = asyncio.run(soak(root, 60 * min(minutes, LONGEST), seed))
    finally:
        shutil.rmtree(root, ignore_errors=True)
    print(outcome.tables())
    for problem in outcome.problems:
        print(problem, file=sys.stderr)
    return 0 if outcome.kept else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Random faults, and what became of all jobs.")
    parser.add_argument("minutes", type=float)
    parser.add_argument("seed", type=int, nargs="?", default=SEED)
    given = parser.parse_args()
    sys.exit(main(given.minutes, given.seed))
