"""Large uploads, large results and many files: whole, and in constant memory."""

import asyncio
import hashlib
import re
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from support.portal import Portal
from support.processes import Program, programs

MB = 2**20
#: Half of each large job: bytes of text, and bytes that do not shrink.
HALF = 128 * MB
#: The most that either program may ever have had in memory (bytes).
RSS_MOST = 120 * MB

TEXT = f"yes 'ATOM      1  N   MET A   1      27.340  24.430   2.614' | head -c {HALF}"
NOISE = f"head -c {HALF} /dev/urandom"


@pytest.fixture
async def both(tmp_path: Path) -> AsyncIterator[tuple[Program, Program]]:
    """A server and a client."""
    async with programs(tmp_path) as (server, (client,)):
        yield server, client


def _peak(program: Program) -> int:
    """The most that a process has had in memory (bytes): VmHWM of proc_pid_status(5)."""
    status = Path(f"/proc/{program.pid}/status").read_text()
    match = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert match
    return int(match[1]) * 1024


def _sha256(path: Path | zipfile.Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(MB):
            digest.update(chunk)
    return digest.hexdigest()


async def test_a_large_result_passes_in_constant_memory(
    both: tuple[Program, Program], tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    """256 MB, half of them text, from run.sh to the portal: every byte right."""
    server, client = both
    portal = Portal(server.url, session)
    id = await portal.upload(f"{TEXT} > text; {NOISE} > noise; sha256sum text noise > sums")
    record = await portal.ended(id)
    assert record["status"] == "Completed"

    zipped = tmp_path / "result.zip"
    async with session.get(f"{server.url}/download/{id}") as response:
        with zipped.open("wb") as file:
            async for chunk in response.content.iter_chunked(MB):
                file.write(chunk)
    assert zipped.stat().st_size == record["result_bytes"] < 1.2 * HALF
    with zipfile.ZipFile(zipped) as archive:
        sums = archive.read("sums").decode().split()
        for name, expected in zip(sums[1::2], sums[::2], strict=True):
            assert _sha256(zipfile.Path(archive, name)) == expected
    assert _peak(server) <= RSS_MOST
    assert _peak(client) <= RSS_MOST


async def test_a_large_upload_passes_in_constant_memory(
    both: tuple[Program, Program], tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    """256 MB from the portal to the working directory of run.sh: every byte right."""
    server, client = both
    portal = Portal(server.url, session)
    await run(f"{TEXT} > text; {NOISE} > noise", tmp_path)
    run_sh = b"sha256sum text noise > sums; rm text noise"
    with (tmp_path / "text").open("rb") as text, (tmp_path / "noise").open("rb") as noise:
        form = aiohttp.FormData({"user_id": "1", "service": "example"})
        form.add_field("file", run_sh, filename="run.sh")
        form.add_field("file", text, filename="text")
        form.add_field("file", noise, filename="noise")
        answer = await portal.post("/upload", data=form)
    assert answer.status == 201
    record = await portal.ended(answer.json["id"])
    assert record["status"] == "Completed"
    assert record["input_bytes"] == 2 * HALF + len(run_sh)
    sums = (await portal.result(record["id"])).read("sums").decode().split()
    for name, expected in zip(sums[1::2], sums[::2], strict=True):
        assert _sha256(tmp_path / name) == expected
    assert _peak(server) <= RSS_MOST
    assert _peak(client) <= RSS_MOST


async def test_an_upload_over_the_limit_leaves_nothing(
    tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    """413 that names the limit; no file, no record, no number is used up."""
    async with programs(tmp_path, server={"MAX_UPLOAD_SIZE": "1MiB"}) as (server, _):
        portal = Portal(server.url, session)
        half = b"x" * (MB // 2)
        answer = await portal.try_upload({"run.sh": "true", "a": half, "b": half})
        assert answer.status == 413
        assert "MAX_UPLOAD_SIZE" in answer.json["message"]
        assert (await portal.get("/jobs")).json["jobs"] == []
        data = server.folder / "server-data"
        assert {path for path in data.rglob("*") if path.is_file()} == {data / "id", data / "lock"}
        fits = {"run.sh": b"", "a": half, "b": half}
        assert await portal.upload(fits) == 1
        assert (await portal.ended(1))["status"] == "Completed"


async def test_a_job_may_have_thousands_of_files(
    both: tuple[Program, Program], session: aiohttp.ClientSession
) -> None:
    """5,000 go in, and 5,000 others come out."""
    server, _ = both
    portal = Portal(server.url, session)
    files = {f"in-{n}.txt": f"{n}" for n in range(4999)}
    run_sh = "cat in-*.txt | wc -c > size; for n in $(seq 5000); do echo $n > out-$n; done"
    id = await portal.upload({"run.sh": run_sh, **files})
    assert (await portal.ended(id))["status"] == "Completed"
    result = await portal.result(id)
    assert int(result.read("size")) == sum(len(content) for content in files.values())
    assert {name: result.read(name).decode() for name in files} == files
    assert all(result.read(f"out-{n}") == f"{n}\n".encode() for n in range(1, 5001))


async def run(script: str, folder: Path) -> None:
    """Run a script to its end."""
    process = await asyncio.create_subprocess_exec("bash", "-c", script, cwd=folder)
    await process.wait()
