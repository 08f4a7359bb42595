"""Errors become answers: which status each has, and what a caller is told."""

import errno
import logging
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web
from stream_zip import ZipError

from orchestrator_shared import errors
from orchestrator_shared.answers import NO_SPACE, STATUSES
from support.answering import Handler, answering
from support.portal import Answer


def raising(error: Exception) -> Handler:
    """A handler that does nothing else."""

    async def handler(request: web.Request) -> web.StreamResponse:
        raise error

    return handler


async def answer_to(error: Exception) -> Answer:
    """What a caller gets where this is raised."""
    async with answering(raising(error)) as portal:
        answer = await portal.get("/")
    assert answer.headers["Content-Type"].startswith("application/json")
    assert set(answer.json) == {"id", "status", "message"}
    return answer


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.NotUsable(problem="so"), 400),
        (errors.BadUpload(problem="so"), 400),
        (errors.BadParameter(name="x", problem="so"), 400),
        (errors.NotFound("job", 0), 404),
        (errors.Silent(seconds=30), 408),
        (errors.Conflict(problem="so"), 409),
        (errors.AlreadyEnded(job=1, ended_as="Killed"), 409),
        (errors.KeyConflict(job=1), 409),
        (errors.OlderAttempt(attempt=1, job=2, held=3), 409),
        (errors.TooLarge(limit=5), 413),
        (errors.ClientUnreachable(client="c", problem="so"), 502),
        (errors.Unavailable(problem="so"), 503),
        (errors.Transient(problem="so"), 503),
        (errors.NoSpace(problem="so"), 507),
        (errors.OrchestratorError(), 500),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
async def test_each_kind_of_error_has_its_status(
    error: errors.OrchestratorError, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Its message is the body, about no job; what was foreseen is not logged."""
    answer = await answer_to(error)

    assert answer.status == status
    assert answer.json == {"id": 0, "status": "Unknown", "message": str(error)}
    assert "X-Job-Status" not in answer.headers
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


def test_every_kind_right_below_the_root_has_a_status() -> None:
    """But those that stop the start, which no caller sees."""
    kinds = {
        kind
        for kind in errors.OrchestratorError.__subclasses__()
        if kind.__module__ == errors.__name__
    }

    assert kinds - set(STATUSES) == {errors.StartError}


async def test_an_error_about_a_job_says_which_and_how_it_stands() -> None:
    """In the body, and in the header that every answer about a job has."""
    answer = await answer_to(errors.Conflict(problem="it has ended").about(7, "Killed"))

    assert (answer.json["id"], answer.json["status"]) == (7, "Killed")
    assert answer.headers["X-Job-Status"] == "Killed"


@pytest.mark.parametrize("number", NO_SPACE)
async def test_a_full_disk_is_507(number: int) -> None:
    """Wherever it is met: no room, no quota, too large a file."""
    answer = await answer_to(OSError(number, "It Is Full"))

    assert answer.status == 507
    assert "It Is Full" in answer.json["message"]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("a secret"), "the log has more"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
        (TimeoutError(), "the log has more"),
        (ZipError(), "a file changed while it was packed"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
async def test_what_nobody_foresaw_is_500_and_logged(
    error: Exception, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    """With its traceback in the log, and nothing of it in the answer."""
    answer = await answer_to(error)

    assert answer.status == 500
    assert told in answer.json["message"]
    assert "secret" not in answer.json["message"]
    assert "None" not in answer.json["message"]
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.getMessage() == "GET / failed"
    assert record.exc_info is not None
    assert record.exc_info[1] is error


async def test_a_caller_that_is_gone_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    """A connection that breaks is not worth a line."""
    assert (await answer_to(ConnectionResetError())).status == 400
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


async def test_the_routers_own_errors_have_the_same_body() -> None:
    """404 and 405, the latter with what is allowed."""
    async with answering(raising(ValueError())) as portal:
        missing = await portal.get("/missing")
        refused = await portal.post("/")

    assert missing.status == 404
    assert missing.json == {
        "id": 0,
        "status": "Unknown",
        "message": "Not Found: GET /missing is not offered here.",
    }
    assert refused.status == 405
    assert refused.headers["Allow"] == "GET,HEAD"
    assert set(refused.json) == {"id", "status", "message"}


async def test_a_redirect_stays_one() -> None:
    """It is no error."""
    async with answering(raising(web.HTTPFound("/elsewhere"))) as portal:
        answer = await portal.get("/")

    assert (answer.status, answer.headers["Location"]) == (302, "/elsewhere")


async def test_the_place_of_a_range_is_kept() -> None:
    """416 tells the size."""
    headers = {"Content-Range": "bytes */5", "X-Other": "x"}

    answer = await answer_to(web.HTTPRequestRangeNotSatisfiable(headers=headers))

    assert answer.status == 416
    assert answer.headers["Content-Range"] == "bytes */5"
    assert "X-Other" not in answer.headers


@pytest.fixture(params=["length", "chunked"])
def begun(request: pytest.FixtureRequest) -> web.StreamResponse:
    """A response that will have begun when something goes wrong."""
    response = web.StreamResponse()
    if request.param == "length":
        response.content_length = 10_000
    return response


@pytest.mark.parametrize(
    ("error", "lines"),
    [
        (ValueError("broken"), 1),
        (OSError(errno.EIO, "Input/output error"), 1),
        (errors.Unavailable(problem="so"), 0),
    ],
    ids=["unforeseen", "disk", "foreseen"],
)
async def test_an_answer_that_has_begun_is_cut_and_not_continued(
    error: Exception, lines: int, begun: web.StreamResponse, caplog: pytest.LogCaptureFixture
) -> None:
    """The caller sees that it is not whole: nothing of another answer stands in its place."""

    async def handler(request: web.Request) -> web.StreamResponse:
        await begun.prepare(request)
        await begun.write(b"first")
        raise error

    received = b""
    async with answering(handler) as portal, portal.session.get(portal.base) as response:
        assert response.status == 200
        with pytest.raises(aiohttp.ClientPayloadError):
            async for chunk in response.content.iter_any():
                received += chunk

    assert received == b"first"
    assert len([record for record in caplog.records if record.levelno > logging.INFO]) == lines


async def test_an_answer_that_was_whole_is_not_touched(caplog: pytest.LogCaptureFixture) -> None:
    """An answer of a handler passes through, with what it has."""

    async def handler(request: web.Request) -> web.StreamResponse:
        return web.json_response({"own": 1}, status=202, headers={"X-Own": "kept"})

    async with answering(handler) as portal:
        answers = [await portal.get("/") for _ in range(2)]

    for answer in answers:
        assert (answer.status, answer.json, answer.headers["X-Own"]) == (202, {"own": 1}, "kept")


async def chunks() -> AsyncIterator[bytes]:
    """A body that comes in pieces."""
    for _ in range(3):
        yield b"x" * 100_000


async def test_a_refusal_reaches_a_caller_that_is_still_sending() -> None:
    """The answer does not wait for the rest of the body, and is not lost."""
    async with answering(raising(errors.NotUsable(problem="so"))) as portal:
        answer = await portal.request("GET", "/", data=chunks())

    assert answer.status == 400
