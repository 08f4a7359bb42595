"""/swagger-ui: the description of all routes, served without anybody's help."""

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from support.lonely import Lonely, lonely_server

#: What serves the description itself.
OWN = ("/swagger-ui/", "/api/docs/swagger.json", "/static/swagger")
#: Which answers each route has; all can be 500 and 503 too.
STATUSES = {
    ("get", "/"): {200},
    ("get", "/live"): {200},
    ("get", "/health"): {200},
    ("get", "/swagger"): {302},
    ("get", "/swagger-ui"): {302},
    ("post", "/upload"): {200, 201, 400, 408, 409, 413, 422, 507},
    ("get", "/clients"): {200},
    ("get", "/services"): {200},
    ("get", "/download/{id}"): {200, 202, 204, 206, 304, 400, 404, 416},
    ("get", "/download_partial/{id}"): {200, 204, 206, 304, 400, 404, 416, 502},
    ("post", "/terminate/{id}"): {200, 202, 400, 404, 409, 507},
    ("get", "/jobs/{id}"): {200, 400, 404},
    ("delete", "/jobs/{id}"): {200, 202, 400, 404, 507},
    ("get", "/jobs"): {200, 400},
    ("get", "/events"): {200, 400},
}
#: Which parameters each route has, beside an id in the path.
PARAMETERS = {
    ("post", "/upload"): {
        ("formData", "file"), ("formData", "user_id"), ("formData", "service"), ("formData", "ref"),
        ("header", "Idempotency-Key"),
    },
    ("get", "/download/{id}"): {
        ("query", "user_id"), ("header", "Range"), ("header", "If-Range"),
        ("header", "If-None-Match"),
    },
    ("get", "/download_partial/{id}"): {
        ("query", "user_id"), ("header", "Range"), ("header", "If-Range"),
        ("header", "If-None-Match"),
    },
    ("post", "/terminate/{id}"): {("query", "user_id")},
    ("delete", "/jobs/{id}"): {("query", "user_id")},
    ("get", "/jobs/{id}"): {
        ("query", name) for name in ("user_id", "wait", "seen", "inputs")
    },
    ("get", "/jobs"): {
        ("query", name) for name in ("user_id", "service", "status", "ref", "limit", "after")
    },
    ("get", "/events"): {
        ("query", name) for name in ("user_id", "service", "limit", "after", "wait")
    },
}  # fmt: skip


@pytest.fixture
async def lonely(tmp_path: Path) -> AsyncIterator[Lonely]:
    """A server."""
    async with lonely_server(tmp_path) as own:
        yield own


async def read_spec(lonely: Lonely) -> dict[str, Any]:
    """The description."""
    answer = await lonely.portal.get("/api/docs/swagger.json")
    assert answer.status == 200
    spec: dict[str, Any] = answer.json
    return spec


def operations(spec: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    """What is described, by method and path."""
    return {
        (method, path): operation
        for path, methods in spec["paths"].items()
        for method, operation in methods.items()
    }


async def test_every_route_is_described_and_no_other(lonely: Lonely) -> None:
    """What the router has, method by method."""
    routes = {
        (route.method.lower(), route.resource.canonical)
        for route in lonely.server.router.routes()
        if route.resource is not None and route.resource.canonical not in OWN
    }

    described = set(operations(await read_spec(lonely)))

    assert described == routes
    assert {key for key in described if key[0] != "head"} == set(STATUSES)


async def test_every_answer_is_described(lonely: Lonely) -> None:
    """Each status that a route can have, with words; an error with the body of all errors."""
    spec = operations(await read_spec(lonely))

    for key, operation in spec.items():
        method, path = key
        expected = STATUSES["get" if method == "head" else method, path] | {500, 503}
        assert {int(status) for status in operation["responses"]} == expected, key
        assert operation["summary"]
        for status, response in operation["responses"].items():
            assert response["description"], (key, status)
            if int(status) >= 400 and (path, status) != ("/health", "503"):
                assert response["schema"] == {"$ref": "#/definitions/Answer"}, (key, status)
    ill = spec["get", "/health"]["responses"]["503"]
    assert ill["schema"] == {"$ref": "#/definitions/ServerHealth"}


async def test_every_parameter_is_described(lonely: Lonely) -> None:
    """Where it stands, its type, and whether it must be there."""
    spec = operations(await read_spec(lonely))

    for (method, path), operation in spec.items():
        found = {(p["in"], p["name"]): p for p in operation["parameters"]}
        assert len(found) == len(operation["parameters"])
        if "{id}" in path:
            id = found.pop(("path", "id"))
            assert (id["type"], id["required"]) == ("integer", True)
        expected = PARAMETERS.get(("get" if method == "head" else method, path), set())
        assert set(found) == expected, (method, path)
        assert all("type" in parameter for parameter in found.values())
    upload = {p["name"]: p for p in spec["post", "/upload"]["parameters"]}
    assert {name for name, p in upload.items() if p.get("required")} == {
        "file", "user_id", "service",
    }  # fmt: skip
    assert spec["post", "/upload"]["consumes"] == ["multipart/form-data"]
    assert upload["file"]["type"] == "file"


async def test_the_description_is_swagger_2(lonely: Lonely) -> None:
    """Its shape is what tools expect, and all that it refers to is in it."""
    spec = await read_spec(lonely)

    assert spec["swagger"] == "2.0"
    assert {"title", "version"} <= set(spec["info"])
    references = set(re.findall(r"'#/definitions/(\w+)'", str(spec)))
    assert {"Job", "Jobs", "Events", "Uploaded", "Answer"} <= references
    assert references <= set(spec["definitions"])
    for method, path in operations(spec):
        assert path.startswith("/")
        assert method in ("get", "head", "post", "delete")


@pytest.mark.parametrize(
    ("name", "path"),
    [("Job", "/jobs/1"), ("Uploaded", "/upload"), ("Jobs", "/jobs"), ("Events", "/events"),
     ("ServerHealth", "/health"), ("Answer", "/download/1"), ("Live", "/live"), ("Pong", "/")],
)  # fmt: skip
async def test_bodies_have_the_fields_that_are_described(
    lonely: Lonely, name: str, path: str
) -> None:
    """No more and no fewer."""
    uploaded = await lonely.portal.try_upload({"run.sh": "true"})
    body = uploaded.json if path == "/upload" else (await lonely.portal.get(path)).json

    definitions = (await read_spec(lonely))["definitions"]

    assert set(definitions[name]["properties"]) == set(body)
    for field, inner in (("jobs", "Job"), ("events", "Event")):
        if field in body:
            assert set(definitions[inner]["properties"]) == set(body[field][0])
    if name == "Job":
        assert set(definitions["History"]["properties"]) == set(body["history"][0])
        assert set(definitions["Waiting"]["properties"]) == set(body["waiting"])


async def test_the_page_needs_nothing_from_elsewhere(lonely: Lonely) -> None:
    """Everything that it names is served here, and it names no other host."""
    page = await lonely.portal.get("/swagger-ui/")

    assert page.status == 200
    assert page.headers["Content-Type"].startswith("text/html")
    html = page.body.decode()
    assert not re.search(r"(?:https?:)?//[\w.-]+\.\w+", html)
    named = re.findall(r'(?:href|src)="([^"]+)"', html) + re.findall(r'url: "([^"]+)"', html)
    assert "/api/docs/swagger.json" in named
    assert len(named) >= 5
    for path in named:
        assert (await lonely.portal.get(path)).status == 200, path


@pytest.mark.parametrize("path", ["/swagger", "/swagger-ui"])
async def test_short_addresses_lead_to_the_page(lonely: Lonely, path: str) -> None:
    """A redirect, for whoever types them."""
    answer = await lonely.portal.get(path)

    assert (answer.status, answer.headers["Location"]) == (302, "/swagger-ui/")
