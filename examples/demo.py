"""A real job through the whole system, from upload to result: `make demo`.

It starts orch-client and orch-server on free ports of this machine, uploads examples/interface
as a portal would, follows the job until it has ended, shows its result, and stops both again.
What they write lies below .demo/ meanwhile. Nothing is left running and no file stays behind,
also where something fails or somebody presses Ctrl-C.
"""

import asyncio
import contextlib
import csv
import io
import os
import shutil
import signal
import sys
import tempfile
import zipfile
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import psutil

ROOT = Path(__file__).resolve().parent.parent
SCRATCH = ROOT / ".demo"
EXAMPLE = ROOT / "examples" / "interface"
TOOLS = ROOT / ".venv-example" / "bin"
FILES = ("run.sh", "contacts.py", "2oob.pdb")
ENDS = ("Completed", "Failed", "Invalid", "Killed")
#: How many of the contacts are shown, and how.
SHOWN = 5
CONTACT = (
    "{chain_1} {name_1} {residue_1:>4} {atom_1:<4} {chain_2} {name_2} {residue_2:>4} {atom_2:<4} "
    "{distance:>5}  {type}"
)
#: How long the job may take, and the start or the stop of a program (seconds).
JOB_PATIENCE = 60.0
PATIENCE = 20.0
#: How often it is looked whether anything still runs (seconds).
LOOK_INTERVAL = 0.05


class DemoError(Exception):
    """The demo cannot go on; its text says why."""


def say(text: str) -> None:
    """Show a line at once, also where the output is no terminal."""
    print(text, flush=True)


class Program:
    """orch-client or orch-server as a process of its own."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.log: list[str] = []
        self._process: asyncio.subprocess.Process | None = None
        self._listening = asyncio.Event()
        self._reading: asyncio.Task[None] | None = None

    async def start(self, folder: Path, environment: Mapping[str, str]) -> str:
        """Start it in `folder`, with just these settings; gives the URL on which it listens.

        Raises:
            DemoError: it does not listen.
        """
        self._process = await asyncio.create_subprocess_exec(
            Path(sys.executable).with_name(self.name),
            "--port=0",
            cwd=folder,
            env={"MIN_FREE_DISK": "0", **environment},
            stdin=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            # Ctrl-C is for the demo alone, which then stops both in good order.
            start_new_session=True,
        )
        self._reading = asyncio.create_task(self._read(self._process))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                await self._listening.wait()
        for line in self.log:
            if "listening on " in line:
                return line.partition("listening on ")[2]
        raise DemoError(f"{self.name} did not start")

    async def stop(self) -> None:
        """Send it SIGTERM and wait for its end.

        Raises:
            DemoError: it ended otherwise than with exit code 0.
        """
        if self._process is None or self._reading is None:
            return
        if self._process.returncode is None:
            self._process.terminate()
        try:
            async with asyncio.timeout(PATIENCE):
                code = await self._process.wait()
        except TimeoutError:
            self._process.kill()
            code = await self._process.wait()
        await self._reading
        if code != 0:
            raise DemoError(f"{self.name} ended with exit code {code}")

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None  # noqa: S101 - it was asked for
        async for line in process.stderr:
            self.log.append(line.decode().rstrip())
            if "listening on " in self.log[-1]:
                self._listening.set()
        self._listening.set()


class Portal:
    """What a portal does: plain HTTP."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self._url = url
        self._session = session

    async def upload(self) -> dict[str, Any]:
        """Hand in the example; gives the answer, with the id of the job."""
        form = aiohttp.FormData({"user_id": "1", "service": "example"}, quote_fields=False)
        for name in FILES:
            form.add_field("file", (EXAMPLE / name).read_bytes(), filename=name)
        async with self._session.post(f"{self._url}/upload", data=form) as response:
            answer: dict[str, Any] = await response.json()
            if response.status != 201:
                raise DemoError(f"the upload was refused: {answer['message']}")
            return answer

    async def changes(self) -> AsyncIterator[dict[str, Any]]:
        """Every change of a job's state, as soon as there is one."""
        after = 0
        while True:
            page = await self._get_json("/events", after=after, wait=30)
            for event in page["events"]:
                yield event
            after = page["next"]

    async def job(self, id: int) -> dict[str, Any]:
        """The record of a job."""
        return await self._get_json(f"/jobs/{id}")

    async def download(self, id: int) -> bytes:
        """The result of a job, a zip."""
        async with self._session.get(f"{self._url}/download/{id}") as response:
            if response.status != 200:
                raise DemoError(f"/download/{id} answers {response.status}")
            return await response.read()

    async def _get_json(self, path: str, **query: int) -> dict[str, Any]:
        async with self._session.get(self._url + path, params=query) as response:
            answer: dict[str, Any] = await response.json()
            if response.status != 200:
                raise DemoError(f"{path} answers {response.status}: {answer['message']}")
            return answer


async def follow(portal: Portal, id: int) -> None:
    """Show the states of the job until it has ended.

    Raises:
        DemoError: it did not end as Completed, or not in time.
    """
    try:
        async with asyncio.timeout(JOB_PATIENCE):
            async for change in portal.changes():
                more = change["reason"] or (change["client"] if change["to"] != "Queued" else "")
                say(f"   {change['at'][11:23]}  {change['to']:<12}{more}".rstrip())
                if change["to"] in ENDS:
                    break
    except TimeoutError as error:
        raise DemoError(f"the job has not ended after {JOB_PATIENCE:.0f} s") from error
    job = await portal.job(id)
    if job["status"] != "Completed":
        raise DemoError(f"the job ended as {job['status']}\n{job['stderr_tail'] or ''}".rstrip())


def show(result: bytes) -> None:
    """Show what came back.

    Raises:
        DemoError: it is not what the example is known to give.
    """
    with zipfile.ZipFile(io.BytesIO(result)) as archive:
        names = [name for name in archive.namelist() if not name.endswith("/")]
        summary = archive.read("summary.txt").decode()
        table = archive.read("contacts.tsv").decode().splitlines()
    contacts = list(csv.DictReader(table, delimiter="\t"))
    say(f"   200: a zip of {len(names)} files, {len(result) / 1024:.0f} KiB")
    say("   summary.txt:")
    for line in summary.splitlines():
        say(f"     {line}")
    say(f"   contacts.tsv, the first {SHOWN} of {len(contacts)} (distances in angstrom):")
    for contact in contacts[:SHOWN]:
        say("     " + CONTACT.format(**contact))
    if summary != (EXAMPLE / "expected" / "summary.txt").read_text():
        raise DemoError("summary.txt is not the one in examples/interface/expected")


async def demo(folder: Path, client: Program, server: Program) -> None:
    """The five steps."""
    path = os.environ.get("PATH", os.defpath)
    say("1  Start the two programs")
    client_url = await client.start(folder, {"PATH": f"{TOOLS}{os.pathsep}{path}"})
    say(f"   orch-client  {client_url}  runs jobs; its PATH begins with .venv-example/bin")
    server_url = await server.start(folder, {"PATH": path, "SERVICE_EXAMPLE_URL": client_url})
    say(f"   orch-server  {server_url}  takes jobs of the service 'example' and hands them to it")
    async with aiohttp.ClientSession() as session:
        portal = Portal(server_url, session)
        say(f"2  Upload {', '.join(FILES)} of examples/interface: POST /upload")
        job = await portal.upload()
        say(f"   201: it is job {job['id']}, {job['status']}, and on disk")
        say("3  Follow it: GET /events?wait=30 answers as soon as a state has changed")
        await follow(portal, job["id"])
        say(f"4  Download its result: GET /download/{job['id']}")
        show(await portal.download(job["id"]))
    say("5  Stop both with SIGTERM")
    await server.stop()
    await client.stop()
    await wait_until_nothing_runs(folder)
    say("   both have ended, nothing is left running, and what they wrote is removed")


# --- leaving nothing behind


def working_below(folder: Path) -> list[psutil.Process]:
    """The processes whose working directory is `folder` or lies below it: both programs, the
    client's supervisor, and what it runs."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and Path(process.cwd()).is_relative_to(folder):
                found.append(process)
    return found


async def wait_until_nothing_runs(folder: Path) -> None:
    """Wait for the client's supervisor, which ends by itself once client and job have.

    Raises:
        DemoError: it does not.
    """
    for _ in range(int(PATIENCE / LOOK_INTERVAL)):
        if not working_below(folder):
            return
        await asyncio.sleep(LOOK_INTERVAL)
    raise DemoError("something is left running")


async def clean_up(folder: Path, programs: list[Program]) -> None:
    """Stop what still runs, whatever it is, and remove the folder."""
    for program in programs:
        with contextlib.suppress(DemoError):
            await program.stop()
    while left := working_below(folder):
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        await asyncio.sleep(LOOK_INTERVAL)
    shutil.rmtree(folder)
    with contextlib.suppress(OSError):
        SCRATCH.rmdir()


def make_folder() -> Path:
    """A folder of its own for this run; what a run that was killed has left is removed."""
    SCRATCH.mkdir(exist_ok=True)
    for old in SCRATCH.iterdir():
        if not working_below(old):
            shutil.rmtree(old)
    return Path(tempfile.mkdtemp(dir=SCRATCH))


async def main() -> int:
    """Run the demo; gives the exit code."""
    folder = make_folder()
    client, server = Program("orch-client"), Program("orch-server")
    running = asyncio.create_task(demo(folder, client, server))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # Only the demo is cancelled: what is done below is done in any case.
        asyncio.get_running_loop().add_signal_handler(number, running.cancel)
    try:
        await running
    except asyncio.CancelledError:
        sys.stderr.write("The demo was interrupted.\n")
        return 130
    except (DemoError, aiohttp.ClientError, OSError, zipfile.BadZipFile, KeyError) as error:
        for program in (client, server):
            sys.stderr.write("".join(f"{program.name}: {line}\n" for line in program.log))
        sys.stderr.write(f"The demo failed: {error or type(error).__name__}\n")
        return 1
    finally:
        await clean_up(folder, [server, client])
    say("README.md shows how to do the same by hand, with curl.")
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
