"""Random faults over two clients for as long as one likes, and a table of what became of all jobs.

PYTHONPATH=tests .venv/bin/python -m acceptance.faults.soak MINUTES [SEED]
"""

import argparse
import asyncio
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final

from acceptance.faults.load import any_work
from acceptance.faults.messages import ALL, KILLS
from acceptance.faults.world import (
    World,
    kill_container,
    kill_supervisor,
    processes_in,
    send_signal,
    world,
)
from support.checker import Counters
from support.faults import Cut, Delay, Fault, Flip, Rule, Slow, Stall, Twice

#: How long it waits for the last jobs once no more faults come (seconds).
LAST_PATIENCE: Final = 180.0
#: Between two faults (seconds): at least, at most.
PAUSES: Final = (0.05, 1.0)
#: Jobs that have not ended yet, at most: more would only wait.
UNDER_WAY: Final = 30


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
    *(message_is_harmed,) * 8,
)


async def _portal(there: World, user_id: int, until: float) -> None:
    """Uploads and ends jobs, one after the other, without ever getting far ahead."""
    while time.monotonic() < until:
        own = any_work(there)
        id = await there.upload(own, user_id)
        if own.label == "killed":
            await there.terminate(id)
        if len(there.checker.works) % UNDER_WAY == 0:
            await there.portal.ended(id)


async def soak(
    root: Path, seconds: float, seed: int, kinds: Sequence[Harm] = FAULTS
) -> tuple[Counter[str], Counters, list[str]]:
    """Faults for so many seconds; gives back how many of which, what was counted, what is wrong."""
    faults: Counter[str] = Counter()
    async with world(root) as there:
        there.random = random.Random(seed)
        until = time.monotonic() + seconds
        portals = [asyncio.create_task(_portal(there, n, until)) for n in range(1, 4)]
        while time.monotonic() < until:
            await asyncio.sleep(there.random.uniform(*PAUSES))
            fault = there.random.choice(kinds)
            await fault(there)
            faults[fault.__name__.replace("_", " ")] += 1
        for proxy in there.proxies:
            proxy.rules.clear()
        await asyncio.gather(*portals)
        problems = []
        try:
            await there.ended(LAST_PATIENCE)
        except AssertionError as error:
            problems.append(str(error))
        counters, found = there.checker.look()
        if problems or found:
            for program in (there.server, *there.clients):
                sys.stderr.write(f"--- {program.folder.name}\n" + "\n".join(program.log[-60:]))
        return faults, counters, problems + found


def main(minutes: float, seed: int) -> int:
    """Soak, print the table, and give back 1 if the promise was broken."""
    root = Path(tempfile.mkdtemp(prefix="soak-"))
    try:
        faults, counters, problems = asyncio.run(soak(root, 60 * minutes, seed))
    finally:
        shutil.rmtree(root, ignore_errors=True)
    print(f"seed {seed}, {minutes:g} minutes, {faults.total()} faults")
    for name, count in faults.most_common():
        print(f"{count:5} {name}")
    print(Counters.titles())
    print(counters.line())
    for problem in problems:
        print(problem)
    return 0 if counters.kept and not problems else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Random faults, and what became of all jobs.")
    parser.add_argument("minutes", type=float)
    parser.add_argument("seed", type=int, nargs="?", default=int.from_bytes(os.urandom(3)))
    given = parser.parse_args()
    sys.exit(main(given.minutes, given.seed))
