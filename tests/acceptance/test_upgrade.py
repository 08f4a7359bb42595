"""Server and client of neighbouring versions, in either order, while a job runs."""

import re
import shutil
import signal
from pathlib import Path

import aiohttp
import pytest

import orchestrator_client
import orchestrator_server
import orchestrator_shared
from orchestrator_shared import __version__
from support.gate import Gate
from support.portal import Portal
from support.processes import Program, programs
from support.system import client_is_there

PACKAGES = (orchestrator_shared, orchestrator_server, orchestrator_client)
#: The version that comes next.
NEXT = "0.2.0"


def next_version(folder: Path) -> Path:
    """A copy of the three packages with what the next minor version may bring: each message has
    one more field, and a client says something that nobody has heard of."""
    for package in PACKAGES:
        source = Path(package.__path__[0])
        shutil.copytree(source, folder / source.name)
    shared = folder / "orchestrator_shared"
    _change(shared / "__init__.py", __version__, NEXT)
    _change(
        shared / "messages.py",
        r'(class \w+\(Struct, [^)]*(?:kw_only|tag)[^)]*\):\n    """(?:.|\n)*?"""\n)',
        r'\1\n    novelty: str = "new"\n',
    )
    _change(
        shared / "messages.py",
        r"\nMessage = Hello",
        '\nclass News(Struct, frozen=True, tag_field="type", tag="news"):\n'
        '    """What is new."""\n\n\nMessage = News | Hello',
    )
    streams = folder / "orchestrator_client" / "streams.py"
    _change(streams, "import Heartbeat,", "import News, Heartbeat,")
    beat = r"( +)await self\._beat\(\)\n( +await self\._list)"
    _change(streams, beat, r"\1await self._beat()\n\1await self._send(News())\n\2")
    _change(
        folder / "orchestrator_server" / "clients" / "endpoint.py",
        r"        self\._acquaintance\.meet",
        "        asyncio.create_task(stream.send(News()))\n        self._acquaintance.meet",
    )
    _change(
        folder / "orchestrator_server" / "clients" / "endpoint.py",
        r"    Message,\n",
        "    Message,\n    News,\n",
    )
    return folder


def _change(file: Path, pattern: str, replacement: str) -> None:
    text, count = re.subn(pattern, replacement, file.read_text())
    assert count, f"{pattern} is not in {file}"
    file.write_text(text)


async def _changed(program: Program, packages: Path | None) -> None:
    """Stop a program as an upgrade does, and start it with these packages."""
    assert await program.stop(signal.SIGTERM) == 0
    program.environment.pop("PYTHONPATH", None)
    if packages is not None:
        program.environment["PYTHONPATH"] = str(packages)
    await program.start()


@pytest.mark.parametrize("first", ["server", "client"])
async def test_an_upgrade_and_a_roll_back_with_a_job_under_way(
    tmp_path: Path, session: aiohttp.ClientSession, first: str
) -> None:
    """A job runs through both, one program after the other, and ends once; others run at each
    pair of versions between."""
    packages = next_version(tmp_path / "next")
    gate = Gate(tmp_path)
    async with programs(tmp_path, server={"CLIENT_LOST_AFTER": "5"}) as (server, (client,)):
        order = [server, client] if first == "server" else [client, server]
        portal = Portal(server.url, session)
        await client_is_there(portal)
        running = await portal.upload(f"{gate.wait}; echo through")
        assert await gate.reached() == running

        pairs = set()
        for version in (packages, None):
            for program in order:
                await _changed(program, version)
                await client_is_there(portal)
                (row,) = (await portal.get("/clients")).json["clients"]
                at_server = (await portal.get("/health")).json["version"]
                pairs.add((at_server, row["version"]))
                between = await portal.upload("echo between")
                assert (await portal.ended(between))["status"] == "Completed"
                assert (await portal.job(running))["attempt"] == 1

        assert pairs == {
            (NEXT, NEXT),
            (__version__, __version__),
            (NEXT, __version__),
            (__version__, NEXT),
        }
        gate.open()
        record = await portal.ended(running)
        assert (record["status"], record["attempt"]) == ("Completed", 1)
        events = (await portal.get("/events?limit=500")).json["events"]
        assert [e["to"] for e in events if e["job"] == running].count("Completed") == 1
    gate.close()
