"""Another version of server and clients, one after the other, while jobs run."""

from collections.abc import Iterator, Sequence

import pytest

from deploy.building import LATER, VERSION
from deploy.compose import Deployment, ends
from deploy.engine import Engine
from support.portal import Portal

pytestmark = pytest.mark.deploy

CLIENTS = ("client-1", "client-2")
SERVER = ("server",)


@pytest.fixture(scope="module")
def deployment(engine: Engine) -> Iterator[Deployment]:
    """Server and clients of this version."""
    own = Deployment(engine)
    try:
        own.up()
        yield own
    finally:
        own.remove()


async def versions(deployment: Deployment) -> dict[str, str]:
    """What each program says of its version."""
    said = {}
    for service in ("server", *CLIENTS):
        program = "orch-server" if service == "server" else "orch-client"
        said[service] = deployment.execute(service, program, "--version").split()[-1]
    return said


async def work(portal: Portal, seconds: float) -> list[int]:
    """Jobs of several users, of which some run by now, and most wait."""
    jobs = [await portal.upload(f"sleep {seconds}; echo $ORCH_JOB_ID > out", user_id=user)
            for user in range(6)]  # fmt: skip
    await portal.reached(jobs[0], "Running")
    return jobs


@pytest.mark.parametrize(
    "order", [(SERVER, CLIENTS), (CLIENTS, SERVER)], ids=["server first", "clients first"]
)
async def test_upgrade_and_roll_back(
    deployment: Deployment, portal: Portal, order: Sequence[Sequence[str]]
) -> None:
    """Both ways, in both orders: the jobs go on, and each ends once, with its own result."""
    first, second = order
    jobs: list[int] = []
    for version, other in ((LATER, VERSION), (VERSION, LATER)):
        for step in (first, second):
            jobs += await work(portal, 3)
            for service in step:
                deployment.change(version, service)
            now = await versions(deployment)
            changed = {*step, *(first if step == second else ())}
            assert now == {name: version if name in changed else other for name in now}
            # Of these two versions, whichever has which, a new job is run as well.
            new = await portal.upload("echo $ORCH_JOB_ID > out", user_id=9)
            jobs.append(new)
            assert (await portal.ended(new))["status"] == "Completed"

    for job in jobs:
        assert (await portal.ended(job))["status"] == "Completed"
        assert (await portal.result(job)).read("out") == f"{job}\n".encode()
    told = await ends(portal)
    assert [told[job] for job in jobs] == [["Completed"]] * len(jobs)
