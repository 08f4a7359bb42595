"""Idempotency-Key: a portal that repeats an upload gets the job of the first one."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from support.errors import check_error
from support.lonely import Lonely, lonely_server, service
from support.system import System

RUN: dict[str, bytes | str] = {"run.sh": "true", "in.txt": "1"}
LARGE: dict[str, bytes | str] = {"run.sh": "true", "big.bin": b"x" * 900_000}
KEY = {"Idempotency-Key": "a key of 2 wörds"}


@pytest.fixture
async def lonely(tmp_path: Path) -> AsyncIterator[Lonely]:
    """A server with two services, whose clients are away."""
    async with lonely_server(tmp_path, service("example"), service("other")) as own:
        yield own


async def job_count(lonely: Lonely) -> int:
    """How many jobs there are."""
    return len((await lonely.portal.get("/jobs")).json["jobs"])


@pytest.mark.parametrize("files", [RUN, LARGE], ids=["small", "large"])
async def test_a_repeat_gets_the_first_job_back(
    lonely: Lonely, files: dict[str, bytes | str]
) -> None:
    """200 instead of 201 with the same answer, and no second job, nor a second copy on disk."""
    first = await lonely.portal.try_upload(files, headers=KEY)
    before = lonely.left()

    again = await lonely.portal.try_upload(dict(reversed(files.items())), headers=KEY)

    assert (first.status, again.status) == (201, 200)
    assert again.json == first.json
    for header in ("Location", "X-Job-Status"):
        assert again.headers[header] == first.headers[header]
    assert await job_count(lonely) == 1
    assert sorted(lonely.left()) == sorted(before)


async def test_a_repeat_gets_a_finished_job_back(system: System) -> None:
    """It is not run again: the answer says how the first one stands."""
    id = await system.portal.upload(RUN, headers=KEY)
    await system.portal.ended(id)

    again = await system.portal.try_upload(RUN, headers=KEY)

    assert (again.status, again.json["id"], again.json["status"]) == (200, id, "Completed")
    assert again.headers["X-Job-Status"] == "Completed"
    assert (await system.portal.job(id))["attempt"] == 1
    assert len((await system.portal.get("/jobs")).json["jobs"]) == 1


@pytest.mark.parametrize(
    ("requests", "state"),
    [([("POST", "/terminate/1")], "Killed"), ([("DELETE", "/jobs/1")], "Cleaned")],
)
async def test_a_repeat_gets_a_job_back_that_is_over(
    lonely: Lonely, requests: list[tuple[str, str]], state: str
) -> None:
    """Killed or Cleaned: the key stays with it."""
    id = await lonely.portal.upload(RUN, headers=KEY)
    for method, path in requests:
        assert (await lonely.portal.request(method, path)).status == 200

    again = await lonely.portal.try_upload(RUN, headers=KEY)

    assert (again.status, again.json["id"], again.json["status"]) == (200, id, state)
    assert await job_count(lonely) == 1


@pytest.mark.parametrize(
    "other",
    [
        {"files": {**RUN, "in.txt": "2"}},
        {"files": {**RUN, "more.txt": ""}},
        {"files": {"run.sh": "true", "renamed.txt": "1"}},
        {"files": {"run.sh": "true"}},
        {"files": {"run.sh": "1", "in.txt": "true"}},
        {"files": LARGE},
        {"files": RUN, "service": "other"},
    ],
    ids=str,
)
async def test_a_key_belongs_to_its_files_and_service(
    lonely: Lonely, other: dict[str, Any]
) -> None:
    """409 for other contents, names or another service; it names the first job, as it is."""
    first = await lonely.portal.upload(RUN, headers=KEY)
    before = lonely.left()

    answer = await lonely.portal.try_upload(**other, headers=KEY)

    check_error(answer, 409, f"job {first}", id=first, state="Queued")
    assert await job_count(lonely) == 1
    assert lonely.left() == before


async def test_a_key_is_its_users_own(lonely: Lonely) -> None:
    """Another user's same key, with the same files or others, is another job."""
    first = await lonely.portal.upload(RUN, headers=KEY, user_id=1)

    assert await lonely.portal.upload(RUN, headers=KEY, user_id=2) != first
    assert await lonely.portal.upload({"run.sh": "false"}, headers=KEY, user_id=3) != first


@pytest.mark.parametrize("files", [RUN, LARGE], ids=["small", "large"])
async def test_of_many_at_once_one_is_the_first(
    lonely: Lonely, files: dict[str, bytes | str]
) -> None:
    """One is answered 201, all others 200, with one id; one copy of the files is left."""
    answers = await asyncio.gather(
        *(lonely.portal.try_upload(files, headers=KEY) for _ in range(6))
    )

    assert sorted(answer.status for answer in answers) == [200] * 5 + [201]
    assert {answer.json["id"] for answer in answers} == {1}
    assert await job_count(lonely) == 1
    assert len([path for path in lonely.left() if path.name == "run.sh"]) == (files is LARGE)


@pytest.mark.parametrize("mistake", [{"ref": "x" * 201}, {"service": "none"}, {"user_id": None}])
async def test_a_refused_upload_takes_no_key(lonely: Lonely, mistake: dict[str, Any]) -> None:
    """Once its mistake is mended, the portal uploads with the same key."""
    check_error(await lonely.portal.try_upload(RUN, headers=KEY, **mistake), 400)

    assert (await lonely.portal.try_upload(RUN, headers=KEY)).status == 201


async def test_without_a_key_each_upload_is_a_job(lonely: Lonely) -> None:
    """The same files twice may well be meant."""
    assert await lonely.portal.upload(RUN) != await lonely.portal.upload(RUN)


async def test_other_keys_are_other_jobs(lonely: Lonely) -> None:
    """Keys compare as they are, to the letter."""
    keys = ["a", "A", "a.", "k" * 255]
    ids = [await lonely.portal.upload(RUN, headers={"Idempotency-Key": key}) for key in keys]

    assert len(set(ids)) == len(keys)
