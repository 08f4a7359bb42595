"""What keeps jobs and clients of deploy/compose where they belong."""

import asyncio
import re

import pytest

from deploy.compose import SERVICES, Deployment, service_of
from support.portal import Portal

pytestmark = pytest.mark.deploy

CLIENTS = ("client-1", "client-2")


async def printed_by_job(portal: Portal, script: str) -> tuple[str, str]:
    """What a run.sh prints, and the client where it ran."""
    job = await portal.upload({"run.sh": script})
    record = await portal.ended(job)
    assert record["status"] == "Completed", record
    result = await portal.result(job)
    return result.read(".orchestrator/stdout.log").decode(), service_of(record)


async def printed_everywhere(portal: Portal, script: str) -> dict[str, str]:
    """What a run.sh prints at each client."""
    found: dict[str, str] = {}
    while found.keys() != set(CLIENTS):
        # Of two that run at once each is at a client of its own, which have a slot each.
        both = await asyncio.gather(*(printed_by_job(portal, f"sleep 1\n{script}") for _ in "ab"))
        found.update({client: printed for printed, client in both})
    return found


def reach(address: str, port: int) -> str:
    """A line of a script that prints whether it can connect."""
    connect = f"timeout 3 bash -c ': </dev/tcp/{address}/{port}'"
    return f"{connect} 2>/dev/null && echo {address}:{port} open || echo {address}:{port} closed"


@pytest.mark.parametrize("service", SERVICES)
def test_a_container_is_restricted(deployment: Deployment, service: str) -> None:
    """Nothing of the root can be written, nothing gained, and nothing used without a limit."""
    known = deployment.inspect(service)
    host = known["HostConfig"]

    assert host["ReadonlyRootfs"]
    assert host["CapDrop"] == ["ALL"]
    assert not host["CapAdd"]
    assert not host["Privileged"]
    assert host["SecurityOpt"] == ["no-new-privileges:true"]
    assert host["RestartPolicy"]["Name"] == "unless-stopped"
    assert host["NanoCpus"] == 10**9
    assert host["Memory"] == (2**30 if service == "server" else 2 * 2**30)
    assert host["PidsLimit"] == (256 if service == "server" else 512)
    assert host["LogConfig"]["Config"] == {"max-size": "10m", "max-file": "5"}
    assert known["State"]["Health"]["Status"] == "healthy"
    written = {mount["Destination"]: mount["RW"] for mount in known["Mounts"]}
    assert written == {"/data": True, "/run/secrets": False}
    # What these settings come to, as the first process has it.
    status = deployment.execute(service, "cat", "/proc/1/status")
    assert re.search(r"^CapBnd:\s+0+$", status, re.MULTILINE)
    assert re.search(r"^NoNewPrivs:\s+1$", status, re.MULTILINE)
    assert re.search(r"^Uid:\s+10001\s+10001", status, re.MULTILINE)


async def test_a_job_writes_in_its_volume_alone(portal: Portal) -> None:
    """Of all that a job sees only its client's volume can be written, and shared memory."""
    everything = "find / -path /proc -prune -o ! -type l ! -type c -writable -print 2>/dev/null"
    tried = "for file in /tmp/x /run/x /run/secrets/x /opt/tools/x; do touch $file 2>&1; done"

    for printed in (await printed_everywhere(portal, f"{everything}\n{tried}; true")).values():
        refused = re.findall(r"^touch: .*: (Read-only file system)$", printed, re.MULTILINE)
        places = [line for line in printed.splitlines() if line.startswith("/")]
        outside = {place for place in places if not place.startswith("/data/payloads")}
        assert len(refused) == 4
        assert any(place.startswith("/data/payloads/work/") for place in places)
        # The last two are memory of the container alone.
        assert outside <= {"/data", "/dev/shm", "/dev/mqueue"}  # noqa: S108


async def test_shared_memory_belongs_to_one_container(portal: Portal) -> None:
    """What a job leaves in /dev/shm is not to be seen from the other client."""
    script = "sleep 1; echo $HOSTNAME >/dev/shm/$HOSTNAME-$ORCH_JOB_ID; sleep 1; cat /dev/shm/*"

    for printed in (await printed_everywhere(portal, script)).values():
        assert len(set(printed.split())) == 1


async def test_no_way_from_a_job(deployment: Deployment, portal: Portal) -> None:
    """It reaches its own client, which asks for a secret; no other, no server, no machine."""
    engine = deployment.engine
    front = gateway(deployment, "front")
    # An address of which a container has only its default route.
    engine.in_network("ip", "address", "replace", f"{OUTSIDE}/32", "dev", "lo")
    with engine.listen() as listener:
        port = listener.getsockname()[1]
        machine = {(address, port): "machine" for address in (front, OUTSIDE)}
        # The server has a way out: so it is the networks of the clients that have none.
        for address, port in machine:
            assert "open" in deployment.execute("server", "bash", "-c", reach(address, port))
        machine |= {(gateway(deployment, client), port): "machine" for client in CLIENTS}
        others = {
            (deployment.address("client-1", "client-1"), 9000): "client-1",
            (deployment.address("client-2", "client-2"), 9000): "client-2",
            (deployment.address("server", "client-1"), 5000): "server",
            (deployment.address("server", "client-2"), 5000): "server",
            (deployment.address("server", "front"), 5000): "server",
        }
        names = machine | others
        script = "\n".join(reach(*where) for where in names)

        for client, printed in (await printed_everywhere(portal, script)).items():
            found = dict(line.split() for line in printed.splitlines())
            assert len(found) == len(names)
            opened = {name for (address, port), name in names.items()
                      if found[f"{address}:{port}"] == "open"}  # fmt: skip
            assert opened == {client}


#: Of the addresses that are kept for examples.
OUTSIDE = "203.0.113.1"


def gateway(deployment: Deployment, network: str) -> str:
    """The address that the machine would have in a network, if it had one."""
    return deployment.engine.docker(
        "network", "inspect", f"job-orchestrator_{network}", "--format",
        "{{(index .IPAM.Config 0).Gateway}}",
    ).strip()  # fmt: skip


def test_one_published_port(deployment: Deployment) -> None:
    """The machine listens for the server on its loopback, and for nobody else."""
    listening = deployment.engine.in_network("ss", "--no-header", "--listening", "--tcp", "-n")

    assert [line.split()[3] for line in listening.splitlines()] == ["127.0.0.1:5000"]
    for client in CLIENTS:
        assert not deployment.inspect(client)["HostConfig"]["PortBindings"]


ASK = """
import sys, urllib.error, urllib.request
for path in sys.argv[2:]:
    try:
        print(path, urllib.request.urlopen(sys.argv[1] + path).status)
    except urllib.error.HTTPError as error:
        print(path, error.code)
"""


@pytest.mark.parametrize("client", CLIENTS)
def test_a_client_asks_for_the_secret(deployment: Deployment, client: str) -> None:
    """Whoever reaches a client's port without the secret learns of its health alone."""
    url = f"http://{client}:9000"

    printed = deployment.execute("server", "python3", "-c", ASK, url, "/health", "/load", "/live")

    assert printed.split() == ["/health", "200", "/load", "401", "/live", "401"]


def test_the_secret_stays(deployment: Deployment) -> None:
    """It is random, readable by the programs' user alone, and the same after another start."""
    look = "stat -c %a /run/secrets/client-token; cat /run/secrets/client-token"
    before = {deployment.execute(service, "sh", "-c", look) for service in SERVICES}

    deployment.engine.docker("start", "--attach", deployment.container("token"))

    after = {deployment.execute(service, "sh", "-c", look) for service in SERVICES}
    assert after == before
    [(mode, secret)] = [text.split() for text in before]
    assert mode == "600"
    assert len(secret) == 44


async def gone(deployment: Deployment, service: str, pid: str) -> None:
    """Wait until a container has no such process, not even a zombie."""
    async with asyncio.timeout(30):
        look = f"cat /proc/{pid}/stat 2>/dev/null || echo gone"
        while deployment.execute(service, "sh", "-c", look).strip() != "gone":
            await asyncio.sleep(0.1)


async def test_what_jobs_leave_is_reaped(deployment: Deployment, portal: Portal) -> None:
    """A process that outlives its job leaves no zombie when it ends."""
    job = await portal.upload("setsid sh -c 'echo $$; exec sleep 2' | (read pid; echo $pid >pid)")
    record = await portal.ended(job)
    pid = (await portal.result(job)).read("pid").decode().strip()

    await gone(deployment, service_of(record), pid)


@pytest.mark.parametrize("service", SERVICES)
async def test_the_first_process_reaps(deployment: Deployment, service: str) -> None:
    """So does one that has no parent left in the container."""
    pid = deployment.execute(service, "sh", "-c", "sleep 2 >/dev/null 2>&1 & echo $!").strip()

    await gone(deployment, service, pid)


async def test_a_job_that_takes_too_much_memory(deployment: Deployment, portal: Portal) -> None:
    """It ends alone; its client goes on."""
    job = await portal.upload("python3 -c 'b\"x\" * (3 * 2**30)'; exit $?")
    record = await portal.ended(job)

    assert (record["status"], record["exit_code"]) == ("Failed", 137)
    assert deployment.inspect(service_of(record))["RestartCount"] == 0
    assert (await portal.ended(await portal.upload("true")))["status"] == "Completed"
