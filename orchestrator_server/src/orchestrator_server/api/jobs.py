"""The records of jobs, and the changes of their states, as lists and one by one."""

import time
from typing import Any

from aiohttp import web
from msgspec.structs import asdict

from orchestrator_server.api.describe import JOB_ID, describe
from orchestrator_server.api.parameters import (
    EventsQuery,
    JobQuery,
    ListQuery,
    read_id,
    read_query,
    read_wait,
)
from orchestrator_server.api.record import at, json_answer, record, status_header
from orchestrator_server.keys import RECORDS, WATCHERS
from orchestrator_server.store.database import Row
from orchestrator_server.store.job import Job
from orchestrator_server.store.records import JobDetails
from orchestrator_shared.portal import EventsSchema, JobsSchema, JobWithInputsSchema
from orchestrator_shared.status import TERMINAL


@describe(
    "jobs",
    "The record of a job; with wait, once it has ended or changed",
    query=JobQuery,
    ok={200: ("The record.", JobWithInputsSchema)},
    errors={400: "A parameter cannot be used.", 404: "There is no such job."},
    parameters=[JOB_ID],
)
async def job(request: web.Request) -> web.Response:
    """GET /jobs/{id}."""
    query = read_query(request, JobQuery)
    details = await _wait_for(request, query)
    shown = record(request, details)
    if query["inputs"]:
        shown["inputs"] = await _inputs(request, details.job)
    return json_answer(shown, headers=status_header(details.job))


async def _inputs(request: web.Request, job: Job) -> list[dict[str, Any]] | None:
    job_input = await request.app[RECORDS].input(job.id)
    return [asdict(file) for file in job_input.files] if job_input else None


async def _wait_for(request: web.Request, query: dict[str, Any]) -> JobDetails:
    """The job now, or as soon as it is what the caller waits for, or when the time is up."""
    id, seen = read_id(request), query.get("seen")
    records = request.app[RECORDS]
    end = time.monotonic() + read_wait(query)
    with request.app[WATCHERS].watch(id) as watch:
        while True:
            details = await records.details(id, query.get("user_id"))
            done = details.job.status in TERMINAL if seen is None else details.job.version != seen
            left = end - time.monotonic()
            if done or left <= 0 or not await watch.next(left):
                return details if done else await records.details(id)


@describe(
    "jobs",
    "Jobs, newest first",
    query=ListQuery,
    ok={200: ("A page of records.", JobsSchema)},
    errors={400: "A parameter cannot be used."},
)
async def jobs(request: web.Request) -> web.Response:
    """GET /jobs."""
    query = read_query(request, ListQuery)
    limit, after = query.pop("limit"), query.pop("after", None)
    found = await request.app[RECORDS].page(query, limit + 1, after)
    page = found[:limit]
    following = page[-1].job.id if len(found) > limit else None
    return json_answer({"jobs": [record(request, details) for details in page], "next": following})


@describe(
    "jobs",
    "Every change of every job once, in order",
    query=EventsQuery,
    ok={200: ("Changes, and where to go on.", EventsSchema)},
    errors={400: "A parameter cannot be used."},
)
async def events(request: web.Request) -> web.Response:
    """GET /events."""
    query = read_query(request, EventsQuery)
    records = request.app[RECORDS]
    position = query["after"]
    end = time.monotonic() + read_wait(query)
    with request.app[WATCHERS].watch(None) as watch:
        while True:
            found, position = await records.events(
                position, query.get("user_id"), query.get("service"), query["limit"]
            )
            left = end - time.monotonic()
            if found or left <= 0 or not await watch.next(left):
                break
    events = [_event(row) for row in found]
    return json_answer({"events": events, "next": position})


def _event(row: Row) -> dict[str, Any]:
    return {
        "seq": row["seq"],
        "at": at(row["at"]),
        "job": row["job"],
        "ref": row["ref"],
        "user_id": row["user_id"],
        "service": row["service"],
        "from": row["old"],
        "to": row["new"],
        "attempt": row["attempt"],
        "client": row["client"],
        "fault": row["fault"],
        "reason": row["reason"],
    }
