"""GET and HEAD /download: the result of a job, or how it stands."""

import base64
import hashlib
import logging
from pathlib import Path

import pytest

from support.errors import check_error
from support.portal import Answer, Portal
from support.states import job_in
from support.system import System

#: Kept in the database, and on disk.
RUNS = {"small": "echo made > out.txt", "large": "head -c 100000 /dev/urandom > out.bin"}


async def completed(portal: Portal, size: str) -> int:
    """A job with a result of this size."""
    id = await portal.upload(RUNS[size])
    record = await portal.ended(id)
    assert record["status"] == "Completed"
    assert Path(record["loc"]).exists() == (size == "large")
    return id


def digest_of(answer: Answer) -> str:
    """What Repr-Digest says of a body that is whole."""
    return f"sha-256=:{base64.b64encode(hashlib.sha256(answer.body).digest()).decode()}:"


@pytest.mark.parametrize("status", ["Queued", "Processing", "Submitted", "Running", "Unknown"])
async def test_a_job_that_goes_on_has_no_result_yet(tmp_path: Path, status: str) -> None:
    """202, and a body and a header that say how it stands; of HEAD only the header."""
    async with job_in(tmp_path, status) as job:
        answer = await job.portal.get(f"/download/{job.id}")
        head = await job.portal.request("HEAD", f"/download/{job.id}")

    assert answer.status == head.status == 202
    assert set(answer.json) == {"id", "status", "message"}
    assert (answer.json["id"], answer.json["status"]) == (job.id, status)
    assert answer.json["message"]
    assert answer.headers["X-Job-Status"] == head.headers["X-Job-Status"] == status
    assert head.body == b""


@pytest.mark.parametrize("status", ["Failed", "Invalid", "Killed", "Cleaned"])
async def test_a_job_that_ended_otherwise_has_no_result(tmp_path: Path, status: str) -> None:
    """204 without a body; the header says which end it was."""
    async with job_in(tmp_path, status) as job:
        for method in ("GET", "HEAD"):
            answer = await job.portal.request(method, f"/download/{job.id}")

            assert (answer.status, answer.body) == (204, b"")
            assert answer.headers["X-Job-Status"] == status


@pytest.mark.parametrize("size", RUNS)
async def test_the_result_is_a_zip_with_its_size_and_digest(system: System, size: str) -> None:
    """200, and headers that let a portal name, check and resume what it downloads."""
    id = await completed(system.portal, size)

    answer = await system.portal.get(f"/download/{id}")

    assert answer.status == 200
    assert any(name.startswith("out.") for name in answer.zip.namelist())
    assert answer.zip.testzip() is None
    assert answer.headers["Content-Type"] == "application/zip"
    assert int(answer.headers["Content-Length"]) == len(answer.body)
    assert answer.headers["Repr-Digest"] == digest_of(answer)
    assert answer.headers["Content-Disposition"] == f'attachment; filename="example-{id}.zip"'
    assert answer.headers["Accept-Ranges"] == "bytes"
    assert answer.headers["X-Job-Status"] == "Completed"
    assert answer.headers["ETag"].startswith('"')
    assert (await system.portal.get(f"/download/{id}")).body == answer.body


@pytest.mark.parametrize("size", RUNS)
async def test_head_says_the_same_without_the_result(system: System, size: str) -> None:
    """The same status and headers as GET, and no body."""
    id = await completed(system.portal, size)
    answer = await system.portal.get(f"/download/{id}")

    head = await system.portal.request("HEAD", f"/download/{id}")

    changing = ("Date",)
    assert (head.status, head.body) == (200, b"")
    assert {k: v for k, v in head.headers.items() if k not in changing} == {
        k: v for k, v in answer.headers.items() if k not in changing
    }


@pytest.mark.parametrize("size", RUNS)
@pytest.mark.parametrize(
    ("asked", "first", "end"),
    [("bytes=0-9", 0, 10), ("bytes=10-", 10, None), ("bytes=-5", -5, None),
     ("bytes=0-999999999", 0, None), ("bytes=7-7", 7, 8)],
)  # fmt: skip
async def test_a_part_of_the_result_can_be_asked_for(
    system: System, size: str, asked: str, first: int, end: int | None
) -> None:
    """206 with just these bytes, where they stand, and the digest of the whole."""
    id = await completed(system.portal, size)
    whole = await system.portal.get(f"/download/{id}")
    total = len(whole.body)

    part = await system.portal.get(f"/download/{id}", headers={"Range": asked})

    assert part.status == 206
    assert part.body == whole.body[first:end]
    begin = first % total
    assert part.headers["Content-Range"] == f"bytes {begin}-{begin + len(part.body) - 1}/{total}"
    for name in ("Repr-Digest", "ETag", "X-Job-Status", "Content-Disposition"):
        assert part.headers[name] == whole.headers[name]


@pytest.mark.parametrize("size", RUNS)
async def test_a_download_goes_on_only_with_the_same_bytes(system: System, size: str) -> None:
    """If-Range with the tag of what the portal has gives the rest; with another, the whole."""
    id = await completed(system.portal, size)
    whole = await system.portal.get(f"/download/{id}")
    rest = {"Range": "bytes=100-"}

    same = await system.portal.get(
        f"/download/{id}", headers={**rest, "If-Range": whole.headers["ETag"]}
    )
    other = await system.portal.get(f"/download/{id}", headers={**rest, "If-Range": '"other"'})

    assert (same.status, same.body) == (206, whole.body[100:])
    assert (other.status, other.body) == (200, whole.body)


@pytest.mark.parametrize("size", RUNS)
async def test_a_range_behind_the_end_is_refused(system: System, size: str) -> None:
    """416 with the length that it has; it is an answer about the job as any other."""
    id = await completed(system.portal, size)
    total = len((await system.portal.get(f"/download/{id}")).body)

    answer = await system.portal.get(f"/download/{id}", headers={"Range": f"bytes={total}-"})

    check_error(answer, 416, "behind the end", id=id, state="Completed")
    assert answer.headers["Content-Range"] == f"bytes */{total}"


async def test_a_result_that_the_portal_has_is_not_sent_again(system: System) -> None:
    """304 for If-None-Match with its tag."""
    id = await completed(system.portal, "small")
    tag = (await system.portal.get(f"/download/{id}")).headers["ETag"]

    answer = await system.portal.get(f"/download/{id}", headers={"If-None-Match": tag})

    assert (answer.status, answer.body, answer.headers["ETag"]) == (304, b"", tag)
    assert answer.headers["X-Job-Status"] == "Completed"


async def test_a_result_that_is_gone_from_the_disk_is_an_error_inside(
    system: System, caplog: pytest.LogCaptureFixture
) -> None:
    """500 that names the job, and a line in the log; HEAD does not look at the file."""
    id = await completed(system.portal, "large")
    for file in Path((await system.portal.job(id))["loc"]).glob("result-*.zip"):
        file.unlink()

    answer = await system.portal.get(f"/download/{id}")

    check_error(answer, 500, f"result of job {id}", id=id, state="Completed")
    assert [r for r in caplog.records if r.levelno == logging.ERROR and f"job {id}" in r.message]
    assert (await system.portal.request("HEAD", f"/download/{id}")).status == 200


async def test_a_result_that_lost_bytes_is_never_served(system: System) -> None:
    """A file that is not as long as it was answers 500, not with half a zip."""
    id = await completed(system.portal, "large")
    (file,) = Path((await system.portal.job(id))["loc"]).glob("result-*.zip")
    file.write_bytes(file.read_bytes()[:-1])

    answer = await system.portal.get(f"/download/{id}")

    check_error(answer, 500, f"result of job {id}", id=id, state="Completed")
