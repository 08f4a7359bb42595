"""GET /download_partial: the working directory of a job as it is now."""

import asyncio
import contextlib
from pathlib import Path

import pytest
from yarl import URL

from support.behind_proxy import system_behind_proxy
from support.errors import check_error
from support.faults import Rule, Stall
from support.gate import Gate
from support.states import job_in


async def test_what_a_running_job_has_made_so_far_can_be_downloaded(tmp_path: Path) -> None:
    """200 and a whole zip, streamed, of what is there at the moment; the job goes on."""
    async with job_in(tmp_path, "Running") as job:
        answer = await job.portal.get(f"/download_partial/{job.id}")
        head = await job.portal.request("HEAD", f"/download_partial/{job.id}")
        job.gate.open()
        record = await job.portal.ended(job.id)

    assert answer.status == head.status == 200
    assert answer.zip.testzip() is None
    assert answer.zip.read("half.txt") == b"half\n"
    assert "run.sh" in answer.zip.namelist()
    assert ".orchestrator/exit_code" not in answer.zip.namelist()
    assert answer.headers["Content-Type"] == "application/zip"
    assert answer.headers["Transfer-Encoding"] == "chunked"
    assert answer.headers["Content-Disposition"] == f'attachment; filename="example-{job.id}.zip"'
    assert answer.headers["X-Job-Status"] == head.headers["X-Job-Status"] == "Running"
    assert head.body == b""
    assert record["status"] == "Completed"


async def test_each_download_is_of_its_own_moment(tmp_path: Path) -> None:
    """A later one has what was made meanwhile."""
    with contextlib.closing(Gate(tmp_path)) as gate:
        async with system_behind_proxy(tmp_path) as (system, _):
            portal = system.portal
            id = await portal.upload(f"echo 1 > a\n{gate.wait}\necho 2 > b\n{gate.wait}\n")
            seen = []
            for _ in range(2):
                await gate.reached()
                await portal.reached(id, "Running")
                names = (await portal.get(f"/download_partial/{id}")).zip.namelist()
                seen.append({"a", "b"} & set(names))
                gate.open()
            await portal.ended(id)

    assert seen == [{"a"}, {"a", "b"}]


async def test_a_job_that_has_not_begun_has_its_inputs(tmp_path: Path) -> None:
    """Submitted: what its client holds is what was uploaded."""
    async with job_in(tmp_path, "Submitted") as job:
        answer = await job.portal.get(f"/download_partial/{job.id}")

    assert answer.status == 200
    assert "run.sh" in answer.zip.namelist()
    assert answer.headers["X-Job-Status"] == "Submitted"


@pytest.mark.parametrize("status", ["Queued", "Processing", "Invalid", "Cleaned"])
async def test_a_job_without_a_directory_has_nothing(tmp_path: Path, status: str) -> None:
    """204 without a body: no client has it yet, it never ran, or its files are gone."""
    async with job_in(tmp_path, status) as job:
        answer = await job.portal.get(f"/download_partial/{job.id}")

    assert (answer.status, answer.body) == (204, b"")
    assert answer.headers["X-Job-Status"] == status


@pytest.mark.parametrize("status", ["Completed", "Failed", "Killed"])
async def test_what_a_job_left_is_there_without_its_client(tmp_path: Path, status: str) -> None:
    """200 from what the server has stored, whole and with digest, also once the client is gone."""
    async with job_in(tmp_path, status) as job:
        await job.proxy.down()
        answer = await job.portal.get(f"/download_partial/{job.id}")
        part = await job.portal.get(f"/download_partial/{job.id}", headers={"Range": "bytes=4-9"})

    assert answer.status == 200
    assert answer.zip.testzip() is None
    assert {"run.sh", ".orchestrator/exit_code"} <= set(answer.zip.namelist())
    assert ("half.txt" in answer.zip.namelist()) == (status == "Killed")
    assert answer.headers["X-Job-Status"] == status
    assert int(answer.headers["Content-Length"]) == len(answer.body)
    assert "Repr-Digest" in answer.headers
    assert (part.status, part.body) == (206, answer.body[4:10])


async def test_a_job_that_was_killed_before_it_began_left_nothing(tmp_path: Path) -> None:
    """Killed while it was Queued: no files of it were ever stored."""
    async with job_in(tmp_path, "Queued") as job:
        await job.portal.post(f"/terminate/{job.id}")
        answer = await job.portal.get(f"/download_partial/{job.id}")

    assert (answer.status, answer.headers["X-Job-Status"]) == (204, "Killed")


@pytest.mark.parametrize("status", ["Running", "Unknown"])
async def test_a_client_that_cannot_be_reached_is_named(tmp_path: Path, status: str) -> None:
    """502 that says which client and how the job stands; the job itself is not touched."""
    async with job_in(tmp_path, status) as job:
        if status == "Running":
            await job.proxy.down()
        before = await job.portal.job(job.id)
        answer = await job.portal.get(f"/download_partial/{job.id}")

        check_error(answer, 502, job.proxy.url, id=job.id, state=status)
        assert await job.portal.job(job.id) == before


@pytest.mark.parametrize("ended", [False, True])
async def test_a_transfer_that_breaks_is_not_taken_for_whole(tmp_path: Path, ended: bool) -> None:
    """The portal's connection ends without the end of the body, and with nothing else in it, also
    where the job has ended meanwhile and could now be served from the server's own disk."""
    with contextlib.closing(Gate(tmp_path)) as gate:
        async with system_behind_proxy(tmp_path) as (system, proxy):
            portal = system.portal
            id = await portal.upload(f"head -c 50000 /dev/urandom > big\n{gate.wait}\n")
            await gate.reached()
            await portal.reached(id, "Running")
            proxy.add(Rule("GET /retrieve_partial answer", Stall(-5000)))
            reader, writer = await asyncio.open_connection("127.0.0.1", URL(portal.base).port)
            writer.write(b"GET /download_partial/%d HTTP/1.1\r\nHost: x\r\n\r\n" % id)
            answer = await reader.readexactly(40000)
            if ended:
                gate.open()
                await portal.ended(id)
            proxy.cut()

            answer += await reader.read()

            writer.close()
            assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
            assert not answer.endswith(b"0\r\n\r\n")
            assert answer.count(b"HTTP/1.1 ") == 1
