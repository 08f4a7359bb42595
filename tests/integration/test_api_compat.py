"""API_COMPAT: portals written for version 2 of the original upload and download as they did there.

What such a portal sent was recorded, and is played again byte for byte.
"""

from pathlib import Path
from typing import Any

import pytest

from orchestrator_server.config import ApiCompat
from orchestrator_shared.status import Status
from support.lonely import lonely_server
from support.portal import Answer, Portal
from support.recorded import play, recorded
from support.states import job_in
from support.system import running_system

V2: dict[str, Any] = {"api_compat": ApiCompat.V2}
FIELDS = ["id", "message", "status"]
#: Every state but the one in which there is a result.
OTHERS = [status for status in Status if status is not Status.COMPLETED]


def agrees(ours: Answer, theirs: Answer | None, id: int) -> None:
    """Status, type, and the fields but for the sentence are those that were recorded."""
    assert theirs is not None
    assert ours.status == theirs.status
    assert kind(ours) == kind(theirs)
    if theirs.body and kind(theirs) == "application/json":
        assert sorted(ours.json) == sorted(theirs.json) == FIELDS
        assert (ours.json["id"], ours.json["status"]) == (id, theirs.json["status"])
        assert ours.json["message"]


def kind(answer: Answer) -> str:
    """The type of the body."""
    return answer.headers["Content-Type"].split(";")[0]


@pytest.mark.parametrize(
    ("scenario", "early"),
    [("completed", 3), ("failed", 0), ("no-run-sh", 0), ("server-restart", 0)],
)
async def test_a_portal_gets_its_result(tmp_path: Path, scenario: str, early: int) -> None:
    """Upload, how the job stands while there is no result, and what there is in the end. So many
    downloads were too early; how far the job is by then is chance."""
    upload, *asked = recorded("v2", scenario).of("portal-server")
    async with running_system(tmp_path, server=V2) as system:
        answer = await play(system.portal.base, upload)
        id = answer.json["id"]
        agrees(answer, upload.answer, id)
        assert answer.headers["Location"] == f"/jobs/{id}"
        assert answer.headers["X-Job-Status"] == "Queued"
        path = f"/download/{id}"
        for exchange in asked[:early]:
            found = await play(system.portal.base, exchange, path)
            assert (found.status, kind(found)) == (200, "application/json")
            assert not found.body if exchange.method == "HEAD" else sorted(found.json) == FIELDS
        ended = await system.portal.ended(id)
        for exchange in asked[early:]:
            found = await play(system.portal.base, exchange, path)
            agrees(found, exchange.answer, id)
            assert found.headers["X-Job-Status"] == ended["status"]
            if kind(found) == "application/zip" and exchange.method == "GET":
                assert "run.sh" in found.zip.namelist()


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("status", OTHERS)
async def test_a_job_without_a_result_says_how_it_stands(
    tmp_path: Path, status: Status, method: str
) -> None:
    """200 and JSON, where it is 202 or 204 by default; HEAD tells its length."""
    async with job_in(tmp_path, status, **V2) as job:
        path = f"/download/{job.id}"
        answer = await job.portal.get(path)
        if method == "HEAD":
            head = await job.portal.request(method, path)
            assert (head.status, head.body) == (200, b"")
            assert head.headers["Content-Length"] == str(len(answer.body))
            assert (kind(head), head.headers["X-Job-Status"]) == (kind(answer), status)
        another = await job.portal.get(path, params={"user_id": 8})

    assert (answer.status, kind(answer)) == (200, "application/json")
    assert sorted(answer.json) == FIELDS
    assert (answer.json["id"], answer.json["status"]) == (job.id, status)
    assert answer.headers["X-Job-Status"] == status
    assert another.status == 404


async def test_a_result_is_downloaded_as_ever(tmp_path: Path) -> None:
    """200 and the zip; HEAD, a range and what the portal has already are answered alike."""
    async with running_system(tmp_path, server=V2) as system:
        portal = system.portal
        id = await portal.upload("echo made > out.txt")
        await portal.ended(id)
        answer = await portal.get(f"/download/{id}")
        head = await portal.request("HEAD", f"/download/{id}")
        part = await portal.get(f"/download/{id}", headers={"Range": "bytes=0-9"})
        tag = {"If-None-Match": answer.headers["ETag"]}
        known = await portal.get(f"/download/{id}", headers=tag)

    assert answer.zip.read("out.txt") == b"made\n"
    assert (head.status, head.body, kind(head)) == (200, b"", "application/zip")
    assert head.headers["Content-Length"] == str(len(answer.body))
    assert (part.status, part.body) == (206, answer.body[:10])
    assert (known.status, known.body) == (304, b"")


async def test_uploads_are_refused_alike(tmp_path: Path) -> None:
    """Missing and wrong fields. One without a file was taken there and failed; what is no form was
    refused in plain text."""
    exchanges = recorded("v2", "bad-uploads").of("portal-server")
    assert len(exchanges) == 6
    async with lonely_server(tmp_path, **V2) as lonely:
        answers = [await play(lonely.portal.base, exchange) for exchange in exchanges]
        assert await lonely.left_nothing()

    assert [answer.status for answer in answers] == [400] * 6
    for answer, exchange in list(zip(answers, exchanges, strict=True))[:4]:
        agrees(answer, exchange.answer, 0)
    for answer in answers[4:]:
        assert sorted(answer.json) == FIELDS


async def test_a_job_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    """404 and JSON to each of its routes."""
    asked = [e for e in recorded("v2", "misc").of("portal-server") if "/99" in e.path]
    assert len(asked) == 3
    async with lonely_server(tmp_path, **V2) as lonely:
        for exchange in asked:
            # The number stands in the place of the 0 that was recorded.
            agrees(await play(lonely.portal.base, exchange), exchange.answer, 99)


async def test_an_upload_that_is_repeated_makes_no_second_job(tmp_path: Path) -> None:
    """200 with the same fields."""
    async with lonely_server(tmp_path, **V2) as lonely:
        key = {"Idempotency-Key": "k"}
        first, again = [
            await lonely.portal.try_upload({"run.sh": "true"}, headers=key) for _ in range(2)
        ]
    assert (first.status, again.status) == (201, 200)
    assert first.json == again.json
    assert sorted(first.json) == FIELDS


@pytest.mark.parametrize("compat", list(ApiCompat))
async def test_everything_else_is_the_same(tmp_path: Path, compat: ApiCompat) -> None:
    """The record, the end of a job, its files as they are; by default the download too."""
    async with lonely_server(tmp_path, api_compat=compat) as lonely:
        portal: Portal = lonely.portal
        answer = await portal.try_upload({"run.sh": "true"})
        id = answer.json["id"]
        assert (sorted(answer.json) == FIELDS) == (compat is ApiCompat.V2)
        waiting = 200 if compat is ApiCompat.V2 else 202
        assert (await portal.get(f"/download/{id}")).status == waiting
        assert (await portal.get(f"/download_partial/{id}")).status == 204
        assert (await portal.job(id))["dest_id"] == ""
        ended = await portal.post(f"/terminate/{id}")
        assert (ended.status, ended.json["status"]) == (200, "Killed")
        assert (await portal.post(f"/terminate/{id}")).status == 409
        assert (await portal.get("/health")).json["status"] == "healthy"
