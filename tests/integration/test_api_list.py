"""GET /jobs: the records of jobs, filtered and page by page."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from support.errors import check_error
from support.lonely import Lonely, lonely_server, service

#: User, service, ref and state of some jobs, in the order of their ids.
JOBS = [
    (1, "dock", "a", "Queued"),
    (2, "dock", "a", "Queued"),
    (1, "my_fold", "b", "Queued"),
    (1, "dock", None, "Killed"),
    (2, "my_fold", "b", "Cleaned"),
    (1, "dock", "a", "Cleaned"),
    (0, "dock", "", "Queued"),
    (2**63 - 1, "dock", "ü &=?", "Queued"),
]


@pytest.fixture
async def lonely(tmp_path: Path) -> AsyncIterator[Lonely]:
    """A server with these jobs, whose clients are away."""
    async with lonely_server(tmp_path, service("dock"), service("my_fold")) as own:
        for user, name, ref, state in JOBS:
            id = await own.portal.upload("true", user_id=user, service=name, ref=ref)
            if state == "Killed":
                await own.portal.post(f"/terminate/{id}")
            elif state == "Cleaned":
                await own.portal.request("DELETE", f"/jobs/{id}")
        yield own


async def ids(lonely: Lonely, **query: Any) -> list[int]:
    """The ids of a page that is the only one."""
    answer = await lonely.portal.get("/jobs", params=query)
    assert answer.status == 200, answer
    assert answer.json["next"] is None
    return [job["id"] for job in answer.json["jobs"]]


async def test_jobs_come_newest_first_with_their_records(lonely: Lonely) -> None:
    """Each as GET /jobs/<id> shows it."""
    listed = (await lonely.portal.get("/jobs")).json

    assert [job["id"] for job in listed["jobs"]] == [8, 7, 6, 5, 4, 3, 2, 1]
    assert listed["next"] is None
    for job in listed["jobs"]:
        assert job == await lonely.portal.job(job["id"])


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"user_id": 1}, [6, 4, 3, 1]),
        ({"user_id": 0}, [7]),
        ({"user_id": 2**63 - 1}, [8]),
        ({"user_id": 3}, []),
        ({"service": "dock"}, [8, 7, 6, 4, 2, 1]),
        ({"service": "My-Fold"}, [5, 3]),
        ({"service": "none"}, []),
        ({"status": "Queued"}, [8, 7, 3, 2, 1]),
        ({"status": "Killed"}, [4]),
        ({"status": "Running"}, []),
        ({"ref": "a"}, [6, 2, 1]),
        ({"ref": ""}, [7]),
        ({"ref": "ü &=?"}, [8]),
        ({"ref": "A"}, []),
        ({"after": 4}, [3, 2, 1]),
        ({"after": 0}, []),
        ({"after": 2**63 - 1}, [8, 7, 6, 5, 4, 3, 2, 1]),
        ({"user_id": 1, "service": "dock"}, [6, 4, 1]),
        ({"user_id": 1, "status": "Queued"}, [3, 1]),
        ({"service": "dock", "ref": "a"}, [6, 2, 1]),
        ({"status": "Cleaned", "ref": "b"}, [5]),
        ({"user_id": 1, "service": "dock", "status": "Cleaned", "ref": "a"}, [6]),
        ({"user_id": 2, "service": "dock", "status": "Cleaned", "ref": "a"}, []),
        ({"user_id": 1, "service": "dock", "after": 6, "limit": 500}, [4, 1]),
    ],
    ids=str,
)
async def test_filters_leave_what_fits_all_of_them(
    lonely: Lonely, query: dict[str, Any], expected: list[int]
) -> None:
    """By user, service (however spelled), state and ref, alone and together."""
    assert await ids(lonely, **query) == expected


async def paged(lonely: Lonely, limit: int, **query: Any) -> list[int]:
    """The ids of all pages, each of which has some, and so many at most."""
    found: list[int] = []
    page: dict[str, Any] = {"next": None}
    while True:
        after = {} if page["next"] is None else {"after": page["next"]}
        page = (await lonely.portal.get("/jobs", params={**query, **after, "limit": limit})).json
        assert 1 <= len(page["jobs"]) <= limit
        found += [job["id"] for job in page["jobs"]]
        if page["next"] is None:
            return found


@pytest.mark.parametrize("query", [{}, {"user_id": 1}, {"service": "dock"}], ids=str)
async def test_pages_follow_without_gap_or_repeat(lonely: Lonely, query: dict[str, Any]) -> None:
    """`next` of a page is `after` of the following; the last has none, and none is empty."""
    expected = await ids(lonely, **query)

    for limit in (1, 2, 3, 4, 7, 8, 500):
        assert await paged(lonely, limit, **query) == expected


async def test_a_new_job_does_not_shift_the_pages(lonely: Lonely) -> None:
    """What is uploaded between two pages stands before the first, and repeats nothing."""
    first = (await lonely.portal.get("/jobs?limit=3")).json
    await lonely.portal.upload("true", service="dock")

    second = (await lonely.portal.get(f"/jobs?limit=3&after={first['next']}")).json

    assert [job["id"] for job in second["jobs"]] == [5, 4, 3]


async def test_a_page_has_50_jobs_unless_said_otherwise(tmp_path: Path) -> None:
    """And 500 at most."""
    async with lonely_server(tmp_path) as lonely:
        for _ in range(51):
            await lonely.portal.upload("true")
        page = (await lonely.portal.get("/jobs")).json
        more = (await lonely.portal.get("/jobs?limit=500")).json

    assert (len(page["jobs"]), page["next"]) == (50, 2)
    assert (len(more["jobs"]), more["next"]) == (51, None)


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("limit=0", "limit"),
        ("limit=501", "limit"),
        ("limit=-1", "limit"),
        ("limit=ten", "limit"),
        ("limit=", "limit"),
        ("after=-1", "after"),
        ("after=x", "after"),
        (f"after={2**63}", "after"),
        ("user_id=-1", "user_id"),
        ("user_id=", "user_id"),
        (f"user_id={'9' * 5000}", "user_id"),
        ("status=queued", "status"),
        ("status=", "status"),
        ("status=Queued&status=Killed", "status"),
        ("wait=1", "wait"),
        ("users_id=1", "users_id"),
        ("ref=a&ref=b", "ref"),
    ],
    ids=lambda value: value[:30],
)
async def test_a_filter_that_cannot_be_used_is_named(lonely: Lonely, query: str, name: str) -> None:
    """400: a filter is never passed over, which would show another's jobs."""
    answer = await lonely.portal.get(f"/jobs?{query}")

    check_error(answer, 400, f"The parameter '{name}' cannot be used: ")
    assert ".." not in answer.json["message"]


@pytest.mark.parametrize("query", ["ref=%00", "ref=%FF", "service=%00", "ref=%F0%9D%84%9E", "&&"])
async def test_odd_texts_do_no_harm(lonely: Lonely, query: str) -> None:
    """Whatever bytes a filter has, it fits or does not."""
    answer = await lonely.portal.get(f"/jobs?{query}")

    assert answer.status == 200
    assert len(answer.json["jobs"]) == (len(JOBS) if query == "&&" else 0)
