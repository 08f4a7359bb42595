"""Errors: one body for all of them, and no odd request that makes the server fail inside."""

import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from yarl import URL

from support.errors import check_error
from support.lonely import Lonely, lonely_server
from support.portal import Answer

#: Every route that is about one job.
JOB_ROUTES = [
    ("GET", "/jobs/{id}"),
    ("DELETE", "/jobs/{id}"),
    ("GET", "/download/{id}"),
    ("GET", "/download_partial/{id}"),
    ("POST", "/terminate/{id}"),
]
#: Every other one, with a method that it has not.
OTHERS = [
    ("POST", "/"), ("POST", "/live"), ("DELETE", "/health"), ("GET", "/upload"), ("PUT", "/upload"),
    ("POST", "/jobs"), ("DELETE", "/events"), ("POST", "/jobs/1"), ("PUT", "/download/1"),
    ("POST", "/download_partial/1"), ("GET", "/terminate/1"), ("OPTIONS", "/jobs"),
]  # fmt: skip


@pytest.fixture
async def lonely(tmp_path: Path) -> AsyncIterator[Lonely]:
    """A server with a job of user 7, whose client is away."""
    async with lonely_server(tmp_path) as own:
        await own.portal.upload("true", user_id=7)
        yield own


async def raw(lonely: Lonely, method: str, path: str) -> Answer:
    """A request whose path goes out as it is."""
    url = URL(lonely.portal.base + path, encoded=True)
    async with lonely.portal.session.request(method, url) as response:
        return Answer(response.status, response.headers, await response.read())


@pytest.mark.parametrize(("method", "path"), JOB_ROUTES)
async def test_a_job_that_is_not_there_is_not_found(lonely: Lonely, method: str, path: str) -> None:
    """404 that names it; it has no state to tell."""
    for id in (2, 0, 2**63 - 1):
        answer = await lonely.portal.request(method, path.format(id=id))

        check_error(answer, 404, f"There is no job {id}.", id=id)


@pytest.mark.parametrize(("method", "path"), JOB_ROUTES)
async def test_another_users_job_is_not_found(lonely: Lonely, method: str, path: str) -> None:
    """404, the same as if it were not there; with its own user, or none, it is."""
    answer = await lonely.portal.request(method, path.format(id=1) + "?user_id=8")

    check_error(answer, 404, "There is no job 1.", id=1)
    assert (await lonely.portal.job(1))["status"] == "Queued"
    answer = await lonely.portal.request(method, path.format(id=1) + "?user_id=7")
    assert answer.status in (200, 202, 204)
    assert "X-Job-Status" in answer.headers


@pytest.mark.parametrize(("method", "path"), JOB_ROUTES)
async def test_a_number_that_no_job_can_have_is_not_found(
    lonely: Lonely, method: str, path: str
) -> None:
    """404 that says what an id is, also for digits of other scripts."""
    for id in (str(2**63), "1" * 20, "9" * 5000, "%EF%BC%91", "%D9%A1"):
        answer = await raw(lonely, method, path.format(id=id))

        check_error(answer, 404, "an id is a number from 1 to")


@pytest.mark.parametrize(("method", "path"), JOB_ROUTES)
async def test_a_parameter_that_cannot_be_used_is_refused(
    lonely: Lonely, method: str, path: str
) -> None:
    """400, and nothing is done: a user that is not understood is not passed over."""
    for query in ("user_id=x", "user_id=-1", "user_id=7&user_id=8", "users=7"):
        answer = await lonely.portal.request(method, f"{path.format(id=1)}?{query}")

        check_error(answer, 400, f"The parameter '{query.partition('=')[0]}' cannot be used: ")
    assert (await lonely.portal.job(1))["status"] == "Queued"


@pytest.mark.parametrize(
    "path", ["/nope", "/jobs/abc", "/jobs/-1", "/jobs/1.0", "/jobs/", "/jobs/1/", "/jobs/1%00",
             "/download/", "/download", "/terminate", "/%2e%2e/etc/passwd", "//jobs", "/a%FFb"],
)  # fmt: skip
async def test_a_route_that_is_not_there_is_not_found(lonely: Lonely, path: str) -> None:
    """404 in the one shape, naming what was asked for."""
    check_error(await raw(lonely, "GET", path), 404, "is not offered here")


@pytest.mark.parametrize(("method", "path"), OTHERS)
async def test_a_method_that_a_route_has_not_is_refused(
    lonely: Lonely, method: str, path: str
) -> None:
    """405 in the one shape, and the methods that it has."""
    answer = await lonely.portal.request(method, path)

    check_error(answer, 405, f"{method} {path} is not offered here")
    assert method not in answer.headers["Allow"].split(",")


@pytest.mark.parametrize(
    "path", ["/", "/live", "/health", "/jobs", "/jobs/1", "/events", "/download/1",
             "/download_partial/1"],
)  # fmt: skip
async def test_head_is_answered_as_get_is(lonely: Lonely, path: str) -> None:
    """The same status and headers, without a body."""
    answer, head = [await lonely.portal.request(method, path) for method in ("GET", "HEAD")]

    assert (head.status, head.body) == (answer.status, b"")
    assert {**head.headers, "Date": ""} == {**answer.headers, "Date": ""}


@pytest.mark.parametrize(
    ("method", "path"),
    [("HEAD", "/jobs/2"), ("HEAD", "/nope"), ("HEAD", "/jobs?limit=0")],
)
async def test_an_error_of_head_has_no_body(lonely: Lonely, method: str, path: str) -> None:
    """But the status of GET."""
    answer = await lonely.portal.request(method, path)

    assert answer.status == (await lonely.portal.get(path)).status
    assert answer.status >= 400
    assert answer.body == b""


async def test_what_a_caller_does_wrong_is_no_event_in_the_log(
    lonely: Lonely, caplog: pytest.LogCaptureFixture
) -> None:
    """No line above debug, and no traceback, for any of it."""
    wrong = ["GET /nope", "GET /jobs/2", "GET /jobs?limit=0", "PUT /upload", "POST /upload",
             f"GET /jobs/{2**63}"]  # fmt: skip
    for method, path in map(str.split, wrong):
        assert (await lonely.portal.request(method, path)).status >= 400

    ours = [record for record in caplog.records if record.name.startswith("orchestrator")]
    assert not [record for record in ours if record.levelno >= logging.WARNING]
    assert not [record for record in caplog.records if record.exc_info]
