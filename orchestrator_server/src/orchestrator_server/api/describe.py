"""What /swagger-ui says of a route, written beside its handler."""

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from aiohttp_apispec import docs, querystring_schema
from marshmallow import Schema

from orchestrator_shared.portal import AnswerSchema

H = TypeVar("H", bound=Callable[..., Any])

#: What every route can answer where something is wrong inside.
_ALWAYS: Mapping[int, str] = {
    500: "It failed inside; the log has more.",
    503: "Not available just now; try again in a moment.",
}

#: Of a route that is about one job.
JOB_ID: Final[dict[str, Any]] = {
    "in": "path",
    "name": "id",
    "type": "integer",
    "required": True,
    "description": "The id of the job.",
}


def describe(
    tag: str,
    summary: str,
    *,
    query: type[Schema] | None = None,
    ok: Mapping[int, tuple[str, type[Schema] | None]],
    errors: Mapping[int, str],
    **more: Any,
) -> Callable[[H], H]:
    """Document a handler: what it takes, what it answers, and each error it can give.

    `ok` maps a status to its description and body (None: no JSON); `more` goes into the
    operation as it is (parameters, consumes, produces).
    """
    bodies = {status: (text, AnswerSchema) for status, text in {**_ALWAYS, **errors}.items()}
    responses: dict[int, dict[str, Any]] = {}
    for status, (description, schema) in {**bodies, **ok}.items():
        responses[status] = {"description": description}
        if schema is not None:
            responses[status]["schema"] = schema

    def decorate(handler: H) -> H:
        described: H = docs(tags=[tag], summary=summary, responses=responses, **more)(handler)
        if query is not None:
            described = querystring_schema(query)(described)
        return described

    return decorate
