"""Every message between server and client that can be harmed, and what makes it pass by."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from acceptance.faults.world import World
from support.faults import Fault, Mark, Message, Rule


def of_status(*statuses: str) -> Callable[[Message], bool]:
    """Frames that tell of a payload in one of these states."""
    return lambda message: message.status in statuses


@dataclass(frozen=True)
class Target:
    """A message, as rules find it."""

    name: str
    kind: str
    where: Callable[[Message], bool] = lambda _: True
    large: bool = False
    #: How a job has to go that the message is about.
    way: Literal["simple", "reconnect", "terminate"] = "simple"

    def __str__(self) -> str:
        return self.name

    def rule(self, fault: Fault, **options: int) -> Rule:
        """A rule that does this to the next such message."""
        return Rule(self.kind, fault, where=self.where, **options)


SUBMITS: Final = (
    Target("small submit", "submit"),
    Target("its answer", "state", of_status("Prepared", "Running")),
    Target("large submit", "POST /submit", large=True),
    Target("its answer", "POST /submit answer", large=True),
)
STREAM: Final = (
    Target("opening of the stream", "GET /stream", way="reconnect"),
    Target("its answer", "GET /stream answer", way="reconnect"),
    Target("first message", "hello", way="reconnect"),
    Target("end of the list", "listed", way="reconnect"),
)
RESULTS: Final = (
    Target("small result", "state", of_status("Completed")),
    Target("fetch of a result", "GET /result", large=True),
    Target("large result", "GET /result answer", large=True),
    Target("acknowledgement", "acknowledge"),
)
KILLS: Final = (
    Target("kill", "POST /kill", way="terminate"),
    Target("its answer", "POST /kill answer", way="terminate"),
)
ALL: Final = (*SUBMITS, *STREAM, *RESULTS)


async def provoke(world: World, target: Target, rule: Rule) -> None:
    """Have a job go its way while this rule holds, until the rule has befallen a message."""
    world.harm(rule)
    if target.way == "simple":
        await world.upload(label=repr(rule), large=target.large)
        await world.upload(label="beside it", large=target.large)
    elif target.way == "reconnect":
        gate = world.gate()
        id = await world.upload(label=repr(rule), script=gate.script)
        await world.portal.reached(id, "Running", "Unknown")
        for proxy in world.proxies:
            proxy.cut()
        gate.open()
    else:
        # It tells that it runs, and then of its process: once the server has dealt with that
        # nothing comes on its own that would remind it of its wish.
        begun = asyncio.Event()
        world.harm(Rule("state", Mark(begun), where=of_status("Running"), skip=1))
        id = await world.upload(label=repr(rule), script=world.gate().script, ends=("Killed",))
        await begun.wait()
        await world.portal.ended(await world.upload(label="beside it"))
        answer = await world.terminate(id)
        assert answer.status in (200, 202), answer
    await rule.hit.wait()
