"""Portals that upload, end and wait for jobs of all kinds while things break."""

import asyncio

from acceptance.faults.world import World
from support.checker import Work

#: Portals at a time.
PORTALS = 4


def any_work(world: World) -> Work:
    """A job of a kind that the dice choose."""
    pause = f"sleep {world.random.uniform(0, 0.2):.3f}"
    dice = world.random.random()
    if dice < 0.15:
        return world.work(label="large", large=True, script=pause)
    if dice < 0.25:
        return world.work(label="fails", script=pause, exit_code=world.random.randint(1, 100))
    if dice < 0.35:
        return world.work(label="killed", script="sleep 0.3", ends=("Killed", "Completed"))
    return world.work(label="small", script=pause)


async def load(world: World, count: int) -> None:
    """Upload so many jobs, and ask for the end of some."""
    left = iter([any_work(world) for _ in range(count)])

    async def portal(user_id: int) -> None:
        for own in left:
            id = await world.upload(own, user_id)
            if own.label == "killed":
                answer = await world.terminate(id)
                assert answer.status in (200, 202, 409), answer

    async with asyncio.TaskGroup() as portals:
        for user_id in range(1, PORTALS + 1):
            portals.create_task(portal(user_id))
