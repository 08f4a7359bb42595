"""deploy/compose, run by a real engine: the walk of the README, and what dies on the way."""

import asyncio
import os
import re
import signal
import zipfile
from pathlib import Path

import aiohttp
import pytest

from deploy.building import image, inspect
from deploy.compose import SERVICES, Deployment, ends, service_of
from deploy.engine import BASE, DOCKER, ROOT
from support.portal import Portal

pytestmark = pytest.mark.deploy

CLIENTS = ("client-1", "client-2")
INTERFACE = ROOT / "examples" / "interface"


def walk() -> tuple[str, str, str]:
    """The commands of the README: upload, download, and many jobs at once."""
    text = (ROOT / "README.md").read_text()
    text = text[text.index("In a third one, upload a job:") : text.index("## Where to go next")]
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    upload, download, many = blocks
    return upload, download, many


async def test_the_walk_of_the_readme(
    deployment: Deployment, portal: Portal, tmp_path: Path
) -> None:
    """Upload, HEAD and download, as they stand there, on a deployment that is new."""
    upload, download, _ = walk()
    script = f"({upload})\n{download}".replace("/tmp/", f"{tmp_path}/")  # noqa: S108

    printed = deployment.engine.in_network("bash", "-euc", script)

    assert '"id":1,' in printed
    with zipfile.ZipFile(tmp_path / "result.zip") as result:
        for expected in (INTERFACE / "expected").iterdir():
            assert result.read(expected.name) == expected.read_bytes()
    assert (await portal.job(1))["status"] == "Completed"


async def test_a_loop_of_250_uploads(
    deployment: Deployment, portal: Portal, tmp_path: Path
) -> None:
    """The loop of the README, of shorter jobs: user 2 does not wait for the 250 of user 1."""
    _, _, many = walk()
    before = set(await ends(portal))
    script = many.replace("/tmp/", f"{tmp_path}/").replace("sleep 1", "sleep 0.1")  # noqa: S108

    deployment.engine.in_network("bash", "-euc", script)

    newest = (await portal.get("/jobs?limit=1")).json["jobs"][0]["id"]
    assert (await portal.ended(newest))["user_id"] == 2
    unended = [job for job in await ends(portal) if not (await ends(portal))[job]]
    assert len(unended) > 50
    for job in unended:
        await portal.ended(job)
    after = await ends(portal)
    assert [own for job, own in after.items() if job not in before] == [["Completed"]] * 251


async def test_many_jobs(portal: Portal) -> None:
    """50 jobs of five users, on both clients: each ends once, with its own result."""
    jobs = {
        await portal.upload(f"echo {n} > out; exit $(({n} % 5 == 0))", user_id=n % 5): n
        for n in range(50)
    }

    used = set()
    for job, n in jobs.items():
        record = await portal.ended(job)
        used.add(service_of(record))
        stored = await portal.get(f"/download_partial/{job}")
        assert stored.zip.read("out") == f"{n}\n".encode()
    told = await ends(portal)
    assert [told[job] for job in jobs] == [["Failed" if n % 5 == 0 else "Completed"]
                                           for n in jobs.values()]  # fmt: skip
    assert used == set(CLIENTS)


async def test_a_killed_client(deployment: Deployment, portal: Portal) -> None:
    """A job whose client's container is killed is run again, and ends once."""
    job = await portal.upload("echo $ORCH_ATTEMPT > out; [ $ORCH_ATTEMPT -gt 1 ] || sleep 600")
    record = await portal.reached(job, "Running")
    client = service_of(record)

    deployment.engine.docker("kill", deployment.container(client))
    await portal.reached(job, "Unknown")
    deployment.up()

    record = await portal.ended(job)
    assert (record["status"], record["attempt"]) == ("Completed", 2)
    assert (await portal.result(job)).read("out") == b"2\n"
    assert (await ends(portal))[job] == ["Completed"]


@pytest.mark.parametrize("service", SERVICES)
async def test_a_crash(deployment: Deployment, portal: Portal, service: str) -> None:
    """A program that dies is started again by the engine; every job ends once."""
    first = "[ $ORCH_ATTEMPT -gt 1 ] || sleep 4"
    jobs = [await portal.upload(first, user_id=user) for user in range(6)]
    await portal.reached(jobs[0], "Running")
    before = deployment.inspect(service)["RestartCount"]

    # `docker kill` is somebody's wish, after which the engine leaves a container alone.
    deployment.execute(service, "python3", "-c", KILL_PROGRAM, check=False)

    while deployment.inspect(service)["RestartCount"] == before:
        await asyncio.sleep(0.1)
    await answers(portal)
    for job in jobs:
        assert (await portal.ended(job))["status"] == "Completed"
    told = await ends(portal)
    assert [told[job] for job in jobs] == [["Completed"]] * len(jobs)


#: Ends the child of the container's first process, with what nobody can catch.
KILL_PROGRAM = """
import os, signal
children = open("/proc/1/task/1/children").read().split()
os.kill(int(children[0]), signal.SIGKILL)
"""


async def answers(portal: Portal) -> None:
    """Wait until the server answers again."""
    async with asyncio.timeout(60):
        while True:
            try:
                if (await portal.get("/live")).status == 200:
                    return
            except (OSError, aiohttp.ClientError):
                await asyncio.sleep(0.1)


async def test_a_killed_server(deployment: Deployment, portal: Portal) -> None:
    """A server whose container is killed comes back with every job, and runs none again."""
    jobs = [await portal.upload("sleep 3; echo $ORCH_ATTEMPT > out") for _ in range(4)]
    await portal.reached(jobs[1], "Running")
    known = (await portal.get("/jobs?limit=500")).json["jobs"]

    deployment.engine.docker("kill", deployment.container("server"))
    deployment.up()

    await answers(portal)
    assert {job["id"] for job in (await portal.get("/jobs?limit=500")).json["jobs"]} == {
        job["id"] for job in known
    }
    for job in jobs:
        record = await portal.ended(job)
        assert (record["status"], record["attempt"]) == ("Completed", 1)
        assert (await portal.result(job)).read("out") == b"1\n"
    told = await ends(portal)
    assert [told[job] for job in jobs] == [["Completed"]] * len(jobs)


async def test_down_and_up(deployment: Deployment, portal: Portal) -> None:
    """Nothing is lost: results are there, what waits waits on, what ran is run again."""
    done = await portal.upload("echo done > out")
    await portal.ended(done)
    jobs = [await portal.upload("sleep 5", user_id=user) for user in range(6)]
    for job in jobs[:2]:
        await portal.reached(job, "Running")
    before = await ends(portal)

    deployment.down()
    assert deployment.engine.docker("ps", "--all", "--quiet") == ""
    deployment.up()

    await answers(portal)
    assert (await portal.result(done)).read("out") == b"done\n"
    for job in jobs:
        record = await portal.ended(job)
        assert record["status"] == "Completed"
    after = await ends(portal)
    assert after.keys() == before.keys()
    assert [after[job] for job in jobs] == [["Completed"]] * len(jobs)
    assert {job: own for job, own in after.items() if before[job]} == {
        job: own for job, own in before.items() if own
    }


async def test_logs(deployment: Deployment, portal: Portal) -> None:
    """`make logs` shows what all of them say, and goes on."""
    process = await asyncio.create_subprocess_exec(
        "make",
        "logs",
        cwd=ROOT,
        env=deployment.engine.environment,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        seen: set[str] = set()
        async with asyncio.timeout(60):
            while not {*SERVICES} <= seen:
                line = (await process.stdout.readline()).decode()
                seen |= {name for name in SERVICES if re.match(rf"{name}-1 .*listening on", line)}
            job = await portal.upload("true")
            while not re.match(rf"server-1 .* job {job} .*→ Completed", line):
                line = (await process.stdout.readline()).decode()
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        await process.communicate()


def test_compose_builds_the_images_of_make(deployment: Deployment, tmp_path: Path) -> None:
    """What Compose builds has the layers of what `make images` builds."""
    engine = deployment.engine
    names = [image(name) for name in ("server", "example")]
    before = [inspect(engine, name) for name in names]
    # The builds of the tests are in the network of the machine.
    site = tmp_path / "site.yaml"
    site.write_text("services:\n" + "".join(
        f"  {service}: {{build: {{network: host}}}}\n" for service in (*SERVICES, "token")
    ))  # fmt: skip

    file = "deploy/compose/compose.yaml"
    engine.run(DOCKER, "compose", "-f", file, "-f", str(site), "build", BASE=BASE)

    after = [inspect(engine, name) for name in names]
    assert [known["RootFS"] for known in after] == [known["RootFS"] for known in before]
    # It was built now, and not just found.
    assert all("com.docker.compose.project" in known["Config"]["Labels"] for known in after)
