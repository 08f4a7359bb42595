"""What a request brings in its path and query, checked."""

import re
from functools import cache
from typing import Any, Final

from aiohttp import web
from marshmallow import RAISE, Schema, ValidationError, fields, validate

from orchestrator_shared.errors import BadParameter, NotFound, OrchestratorError
from orchestrator_shared.protocol import service_name
from orchestrator_shared.status import Status

#: The largest number that the database can hold, and the largest user.
MOST: Final = 2**63 - 1
#: The longest that a caller waits (seconds).
WAIT_MOST: Final = 60.0

_ID: Final[re.Pattern[str]] = re.compile("[0-9]{1,19}")

_number = validate.Range(min=0, max=MOST)


class NoSuchId(NotFound):
    """There is no job {text}: an id is a number from 1 to {most}."""

    def __init__(self, text: str) -> None:
        OrchestratorError.__init__(self, text=text[:40], most=MOST)


class Number(fields.Integer):
    """Digits and nothing else: int() takes '1_0' and the digits of other scripts too."""

    def _validated(self, value: Any) -> int:
        if not re.fullmatch("[0-9]+", str(value)):
            raise self.make_error("invalid", input=value)
        return super()._validated(value)


class Query(Schema):
    """A query string: a parameter that is not known is an error, not a filter passed over."""

    class Meta:
        unknown = RAISE

    user_id = Number(
        validate=_number,
        metadata={"description": "answer 404 where the job is another user's"},
    )


class JobQuery(Query):
    """Of a job's record."""

    wait = fields.Float(
        validate=validate.Range(min=0),
        metadata={"description": "wait for its end, this many seconds at most (up to 60)"},
    )
    seen = Number(
        validate=_number,
        metadata={"description": "with wait: wait for a version other than this instead"},
    )
    inputs = fields.Boolean(
        load_default=False,
        metadata={"description": "with its uploaded files: name, size and SHA-256 of each"},
    )


class ListQuery(Query):
    """Of a list of jobs."""

    service = fields.String()
    status = fields.String(validate=validate.OneOf([status.value for status in Status]))
    ref = fields.String()
    limit = Number(load_default=50, validate=validate.Range(min=1, max=500))
    after = Number(
        validate=_number, metadata={"description": "only jobs with a lower id: `next` of a page"}
    )


class EventsQuery(Query):
    """Of the changes."""

    after = Number(
        load_default=0,
        validate=_number,
        metadata={"description": "only changes behind this number: `next` of the last call"},
    )
    service = fields.String()
    limit = Number(load_default=50, validate=validate.Range(min=1, max=500))
    wait = fields.Float(
        validate=validate.Range(min=0),
        metadata={"description": "wait for a change, this many seconds at most (up to 60)"},
    )


@cache
def _made(schema: type[Schema]) -> Schema:
    # Once: making a schema copies all its fields.
    return schema()


def read_query(request: web.Request, schema: type[Schema]) -> dict[str, Any]:
    """The query string of a request.

    Raises:
        BadParameter: one of its parameters cannot be used; it names the first.
    """
    twice = next((name for name in request.query if len(request.query.getall(name)) > 1), None)
    if twice:
        raise BadParameter(name=twice, problem="it is given twice")
    try:
        query: dict[str, Any] = _made(schema).load(request.query)
    except ValidationError as error:
        name, problems = next(iter(error.messages_dict.items()))
        problem = " ".join(problems).rstrip(".")
        raise BadParameter(name=name, problem=problem) from error
    if "service" in query:
        query["service"] = service_name(query["service"])
    return query


def read_id(request: web.Request) -> int:
    """The id of a job in the path.

    Raises:
        NotFound: no job can have it.
    """
    text = request.match_info["id"]
    if not _ID.fullmatch(text) or int(text) > MOST:
        raise NoSuchId(text)
    return int(text)


def read_wait(query: dict[str, Any]) -> float:
    """How long the caller wants to wait (seconds)."""
    return min(float(query.get("wait", 0.0)), WAIT_MOST)
