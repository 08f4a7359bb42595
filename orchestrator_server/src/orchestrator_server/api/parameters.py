"""What a request brings in its path and query, checked."""

from typing import Any, Final

from aiohttp import web
from marshmallow import RAISE, Schema, ValidationError, fields, validate

from orchestrator_shared.errors import BadParameter, NotFound
from orchestrator_shared.protocol import service_name
from orchestrator_shared.status import Status

#: The largest number that the database can hold, and the largest user.
MOST: Final = 2**63 - 1
#: The longest that a caller waits (seconds).
WAIT_MOST: Final = 60.0

_number = validate.Range(min=0, max=MOST)


class Query(Schema):
    """A query string: a parameter that is not known is an error, not a filter passed over."""

    class Meta:
        unknown = RAISE

    user_id = fields.Integer(
        validate=_number,
        metadata={"description": "answer 404 where the job is another user's"},
    )


class JobQuery(Query):
    """Of a job's record."""

    wait = fields.Float(
        validate=validate.Range(min=0),
        metadata={"description": "wait for its end, this many seconds at most (up to 60)"},
    )
    seen = fields.Integer(
        validate=_number,
        metadata={"description": "with wait: wait for a version other than this instead"},
    )


class ListQuery(Query):
    """Of a list of jobs."""

    service = fields.String()
    status = fields.String(validate=validate.OneOf([status.value for status in Status]))
    ref = fields.String()
    limit = fields.Integer(load_default=50, validate=validate.Range(min=1, max=500))
    after = fields.Integer(
        validate=_number, metadata={"description": "only jobs with a lower id: `next` of a page"}
    )


class EventsQuery(Query):
    """Of the changes."""

    after = fields.Integer(
        load_default=0,
        validate=_number,
        metadata={"description": "only changes behind this number: `next` of the last call"},
    )
    service = fields.String()
    limit = fields.Integer(load_default=50, validate=validate.Range(min=1, max=500))
    wait = fields.Float(
        validate=validate.Range(min=0),
        metadata={"description": "wait for a change, this many seconds at most (up to 60)"},
    )


def read_query(request: web.Request, schema: Schema) -> dict[str, Any]:
    """The query string of a request.

    Raises:
        BadParameter: one of its parameters cannot be used; it names the first.
    """
    names = list(request.query)
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise BadParameter(name=twice, problem="it is given twice")
    try:
        query: dict[str, Any] = schema.load(request.query)
    except ValidationError as error:
        name, problems = next(iter(error.messages_dict.items()))
        raise BadParameter(name=name, problem=" ".join(problems)) from error
    if "service" in query:
        query["service"] = service_name(query["service"])
    return query


def read_id(request: web.Request) -> int:
    """The id of a job in the path.

    Raises:
        NotFound: no job can have it.
    """
    id = int(request.match_info["id"])
    if id > MOST:
        raise NotFound("job", 0)
    return id


def read_wait(query: dict[str, Any]) -> float:
    """How long the caller wants to wait (seconds)."""
    return min(float(query.get("wait", 0.0)), WAIT_MOST)
