"""The jobs of a stopped server of the original become ours, each as it stood there."""

import hashlib
import json
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator_server.keys import CLEANER
from support.original_folder import (
    AWAY,
    LARGE,
    OriginalFolder,
    config_of,
    jobs_of,
    rows_of,
    take_over,
    zip_of,
)
from support.servers import server_of

REASON = "taken over from the original"


@pytest.fixture
def original(tmp_path: Path) -> OriginalFolder:
    """What was recorded: jobs 1 and 5 Completed, 2 Failed, 3 Invalid, 4 Killed, 6 to 8 Running,
    9 and 10 Queued."""
    return OriginalFolder(tmp_path / "original")


# --- what becomes of each job


async def test_all_jobs_are_shown_as_they_stood(original: OriginalFolder, tmp_path: Path) -> None:
    """With their ids, users and times, and the ids of their payloads."""
    before = time.time()
    said = take_over(original, config_of(tmp_path))
    assert said == (
        "10 jobs are taken over (2 Completed, 1 Failed, 1 Invalid, 1 Killed, 3 Running, 2 Queued), "
        "0 were before"
    )

    async with server_of(tmp_path, [AWAY]) as server:
        jobs = {id: await server.portal.job(id) for id in range(1, 11)}
    assert [
        (id, job["user_id"], job["service"], job["created_at"]) for id, job in jobs.items()
    ] == original.execute(
        "SELECT id, user_id, service, replace(created_at, ' ', 'T') || '.000Z' FROM jobs"
    )
    assert {id: job["status"] for id, job in jobs.items()} == {
        **{1: "Completed", 2: "Failed", 3: "Invalid", 4: "Killed", 5: "Completed"},
        **{6: "Running", 7: "Running", 8: "Running", 9: "Queued", 10: "Queued"},
    }
    assert [job["dest_id"] for job in jobs.values()] == [*map(str, range(1, 9)), "", ""]
    assert [job["client"] for job in jobs.values()] == [None] * 5 + [AWAY] * 3 + [None] * 2
    assert [jobs[id]["fault"] for id in (1, 2, 3, 4)] == [None, None, "user", "operator"]
    for id in (1, 2, 3, 4, 5, 9, 10):
        assert jobs[id]["reason"] == REASON
    for id in (6, 7, 8):
        began, sent, runs = jobs[id]["history"]
        assert (began["status"], began["at"]) == ("Queued", jobs[id]["created_at"])
        assert (sent["status"], sent["reason"], sent["attempt"]) == ("Processing", REASON, 1)
        assert (runs["status"], runs["client"]) == ("Running", AWAY)
    history = [(entry["status"], entry["reason"]) for entry in jobs[4]["history"]]
    assert history == [("Queued", None), ("Processing", REASON), ("Killed", REASON)]
    assert jobs[1]["ended_at"] >= time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(before))


async def test_results_are_served_byte_for_byte(original: OriginalFolder, tmp_path: Path) -> None:
    """Those that are small, and one that is not; a job that failed has what there is."""
    large, noise = zip_of(noise=LARGE), zip_of(note=b"why")
    added = original.add("completed", {"run.sh": "true", "output.zip": large}, dest_id=9)
    failed = original.add("failed", {"run.sh": "false", "output.zip": noise}, dest_id=10)
    take_over(original, config_of(tmp_path))

    async with server_of(tmp_path, [AWAY]) as server:
        for id in (1, 5, added):
            answer = await server.portal.get(f"/download/{id}")
            assert answer.status == 200
            assert answer.body == (original.files(id) / "output.zip").read_bytes()
        assert (await server.portal.get(f"/download_partial/{failed}")).body == noise
        for id in (2, 3, 4, failed):
            assert (await server.portal.get(f"/download/{id}")).status == 204
        # What is deleted is gone at once: no client has a copy.
        assert (await server.portal.request("DELETE", f"/jobs/{added}")).status == 200
        assert (await server.portal.get(f"/download/{added}")).status == 204
    assert list((tmp_path / "server" / "jobs").iterdir()) == []


def test_inputs_are_all_files_but_the_result(original: OriginalFolder, tmp_path: Path) -> None:
    """With their names, sizes and digests, as an upload leaves them."""
    large = original.add("running", {"run.sh": "true", "in": LARGE, "output.zip": b"x"}, dest_id=9)
    config = config_of(tmp_path)
    take_over(original, config)

    jobs = jobs_of(config)
    for row in rows_of(config, "inputs"):
        folder, body, total = original.files(row["job"]), row["body"] or b"", 0
        manifest = {file["name"]: file for file in json.loads(row["manifest"])}
        assert set(manifest) == {path.name for path in folder.iterdir()} - {"output.zip"}
        for name, file in manifest.items():
            content = (folder / name).read_bytes()
            assert file["size"] == len(content)
            assert file["sha256"] == hashlib.sha256(content).hexdigest()
            if row["body"] is not None:
                assert body[total : total + len(content)] == content
            total += len(content)
        assert jobs[row["job"]]["input_bytes"] == total
        assert (row["body"] is None) == (row["job"] == large)
    assert len(rows_of(config, "inputs")) == 11


@pytest.mark.parametrize("sent", [False, True], ids=["without dest_id", "with dest_id"])
@pytest.mark.parametrize(
    "word", ["queued", "Processing", "submitted", "prepared", "running", "locked", "unknown"]
)
def test_what_has_no_end_goes_on(
    original: OriginalFolder, tmp_path: Path, word: str, sent: bool
) -> None:
    """Where it is, if it was sent; else from the beginning."""
    id = original.add(word, {"run.sh": "true"}, dest_id=11 if sent else None)
    none = original.add(word, {"run.sh": "true"}, dest_id=0)

    take_over(original, config_of(tmp_path))

    jobs = jobs_of(config_of(tmp_path))
    assert jobs[id]["status"] == ("Running" if sent else "Queued")
    assert jobs[none]["status"] == "Queued"


@pytest.mark.parametrize(
    "harm", ["missing", "empty", "cut short", "another byte", "cannot be unpacked", "no zip"]
)
@pytest.mark.parametrize("content", [b"few", LARGE], ids=["small", "large"])
async def test_without_a_zip_that_can_be_read_a_job_has_failed(
    original: OriginalFolder, tmp_path: Path, harm: str, content: bytes
) -> None:
    """It is nobody's fault, and the reason says what is wrong."""
    id = original.add("completed", {"run.sh": "true", "output.zip": zip_of(out=content)}, dest_id=9)
    file = original.files(id) / "output.zip"
    whole = file.read_bytes()
    at = whole.index(content)
    deflated = zip_of(zipfile.ZIP_DEFLATED, out=content)
    head = deflated.index(b"out") + len("out")
    harmed = {
        "empty": b"",
        "cut short": whole[: len(whole) // 2],
        "another byte": whole[:at] + b"!" + whole[at + 1 :],
        "cannot be unpacked": deflated[:head] + b"\xff" * 4 + deflated[head + 4 :],
        "no zip": content,
    }
    if harm == "missing":
        file.unlink()
    else:
        file.write_bytes(harmed[harm])

    take_over(original, config_of(tmp_path))

    async with server_of(tmp_path, [AWAY]) as server:
        job = await server.portal.job(id)
        assert (await server.portal.get(f"/download_partial/{id}")).status == 204
    assert (job["status"], job["fault"]) == ("Failed", "infrastructure")
    assert job["reason"] == f"{REASON}: its output.zip is missing or damaged"


async def test_a_job_without_its_folder(original: OriginalFolder, tmp_path: Path) -> None:
    """What could not be run has failed; what a client has is asked for there; an end stays."""
    ids = [
        original.add(status, None, dest_id=dest_id)
        for status, dest_id in (("completed", 9), ("queued", None), ("running", 10), ("killed", 11))
    ]
    empty = original.add("queued", {})

    take_over(original, config_of(tmp_path))

    async with server_of(tmp_path, [AWAY]) as server:
        jobs = [await server.portal.job(id) for id in (*ids, empty)]
    assert [(job["status"], job["fault"]) for job in jobs] == [
        ("Failed", "infrastructure"),
        ("Failed", "infrastructure"),
        ("Running", None),
        ("Killed", "operator"),
        ("Failed", "infrastructure"),
    ]
    for job in (jobs[1], jobs[4]):
        assert job["reason"] == f"{REASON}: its files are missing"


async def test_what_the_original_has_cleaned_stays_so(
    original: OriginalFolder, tmp_path: Path
) -> None:
    """It does not say how such a job ended; its id is not given again."""
    id = original.add("cleaned", None, dest_id=9)

    assert "1 Cleaned" in take_over(original, config_of(tmp_path))

    async with server_of(tmp_path, [AWAY]) as server:
        job = await server.portal.job(id)
        assert (await server.portal.get(f"/download/{id}")).status == 204
        assert await server.portal.upload("true") == id + 1
    assert job["status"] == "Cleaned"
    assert "does not say how it had ended" in job["message"]


async def test_a_name_that_cannot_be_used_here(original: OriginalFolder, tmp_path: Path) -> None:
    """A job that waits is Invalid, as its upload would be refused; what is sent goes on, but
    could not be run again with a part of its files."""
    waits = original.add("queued", {"run.sh": "true", "a\nb": "x"})
    sent = original.add("running", {"run.sh": "true", "a\nb": "x"}, dest_id=9)

    take_over(original, config_of(tmp_path))

    async with server_of(tmp_path, [AWAY]) as server:
        job = await server.portal.job(waits)
        assert (await server.portal.job(sent))["status"] == "Running"
    assert {waits, sent}.isdisjoint(row["job"] for row in rows_of(config_of(tmp_path), "inputs"))
    assert (job["status"], job["fault"]) == ("Invalid", "user")
    assert "control characters" in job["reason"]


@pytest.fixture
def _in_tokyo(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as elsewhere:
        elsewhere.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("_in_tokyo")
def test_a_time_that_is_missing_or_odd_is_that_of_the_import(
    original: OriginalFolder, tmp_path: Path
) -> None:
    """Others are taken as UTC, whatever the zone here; or as they say."""
    before = time.time()
    ids = [original.add("queued", {"run.sh": "true"}) for _ in range(3)]
    for id, text in zip(ids, (None, "long ago", "2026-11-22T15:57:03+01:00"), strict=True):
        original.execute("UPDATE jobs SET created_at = ? WHERE id = ?", text, id)

    take_over(original, config_of(tmp_path))

    created = {id: job["created_at"] for id, job in jobs_of(config_of(tmp_path)).items()}
    assert [created[id] >= before for id in ids] == [True, True, False]
    assert created[1] - created[ids[2]] == 3600


async def test_age_counts_from_the_import(original: OriginalFolder, tmp_path: Path) -> None:
    """However old a job is: its portal has MAX_AGE to fetch its result."""
    original.execute("UPDATE jobs SET created_at = '2020-01-01 00:00:00'")
    take_over(original, config_of(tmp_path))

    async with server_of(tmp_path, [AWAY]) as server:
        assert await server.app[CLEANER].run_once() == 0
        assert (await server.portal.get("/download/1")).status == 200
    async with server_of(tmp_path, [AWAY], service={"max_age": 0.0}) as server:
        await server.app[CLEANER].run_once()
        assert (await server.portal.job(1))["status"] == "Cleaned"
