"""What was taken over from a server of the original goes on here, once."""

import contextlib
import json
import sqlite3
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from orchestrator_server.clients.original.identity import instance_of
from orchestrator_server.config import ClientAddress, Config, Service
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
from support.store import bare_store
from support.system import client_config, client_is_there, running_client, server_config


@pytest.fixture
def original(tmp_path: Path) -> OriginalFolder:
    """What was recorded: jobs 1 and 5 Completed, 2 Failed, 3 Invalid, 4 Killed, 6 to 8 Running,
    9 and 10 Queued."""
    return OriginalFolder(tmp_path / "original")


def _all(config: Config) -> tuple[list[str], list[str]]:
    """All that the database says, and the names of all files and folders."""
    with contextlib.closing(sqlite3.connect(config.db_path)) as connection:
        dump = list(connection.iterdump())
    folders = config.data_path.rglob("*")
    return dump, sorted(str(path) for path in folders if path.parent.name != "tmp")


# --- what goes on


class _OriginalClient:
    """A client of the original, version 2, that has had payloads 6 to 8."""

    def __init__(self, result: bytes) -> None:
        self.result = result
        self.asked: set[str] = set()

    def app(self) -> web.Application:
        """Its routes."""
        app = web.Application()
        app.router.add_get("/health", self._health)
        app.router.add_get("/load", self._load)
        app.router.add_get("/retrieve/{id}", self._retrieve)
        return app

    async def _health(self, _request: web.Request) -> web.Response:
        return self._json(b'{"status":"ok","database":"ok"}')

    async def _load(self, _request: web.Request) -> web.Response:
        return self._json(b"0.0")

    async def _retrieve(self, request: web.Request) -> web.Response:
        id = request.match_info["id"]
        self.asked.add(id)
        if id == "6":
            return web.Response(body=self.result, headers={"Content-Type": "application/zip"})
        payload = {
            "id": int(id),
            "input": {},
            "status": "Failed" if id == "7" else "Running",
            "loc": f"/srv/orchestrator/client/{id}",
            "pid": 17776,
            "killed": False,
        }
        return self._json(json.dumps(payload, separators=(",", ":")).encode())

    @staticmethod
    def _json(body: bytes) -> web.Response:
        return web.Response(body=body, headers={"Content-Type": "application/json"})


@contextlib.asynccontextmanager
async def _served(client: _OriginalClient) -> AsyncIterator[str]:
    server = TestServer(client.app())
    await server.start_server(shutdown_timeout=1)
    try:
        yield str(server.make_url("")).rstrip("/")
    finally:
        await server.close()


async def test_what_runs_is_asked_for_at_its_client(
    original: OriginalFolder, tmp_path: Path
) -> None:
    """Under the ids that it has there; each has its own end."""
    client = _OriginalClient((original.files(5) / "output.zip").read_bytes())
    original.execute("DELETE FROM jobs WHERE status = 'queued'")
    async with _served(client) as base:
        take_over(original, config_of(tmp_path, {"example": [base]}))
        async with server_of(tmp_path, [base], getter_interval=0.05) as server:
            assert (await server.portal.ended(6))["status"] == "Completed"
            assert (await server.portal.ended(7))["status"] == "Failed"
            assert (await server.portal.get("/download/6")).body == client.result
            assert (await server.portal.job(8))["status"] == "Running"
    assert client.asked == {"6", "7", "8"}


async def test_what_waits_is_run(original: OriginalFolder, tmp_path: Path) -> None:
    """At a client of ours, with all of its files under their own names; a file of the name that
    results have there is one of them."""
    files = {"run.sh": "cat *' '* output.zip > out", "my größe 1.txt": "it is ", "output.zip": "me"}
    few = original.add("queued", files)
    much = original.add("queued", {**files, "noise": LARGE})
    async with running_client(client_config(tmp_path / "client")) as client:
        base = str(client.make_url("")).rstrip("/")
        said = take_over(original, config_of(tmp_path, {"example": [base]}), f"example={AWAY}")
        assert "4 Queued" in said
        async with server_of(tmp_path, [base]) as server:
            await client_is_there(server.portal)
            for id in (9, 10, few, much):
                assert (await server.portal.ended(id))["status"] == "Completed"
            assert (await server.portal.result(9)).read("out.txt") == b"queued\n"
            for id in (few, much):
                result = await server.portal.result(id)
                assert result.read("out") == b"it is me"
                assert result.read("my größe 1.txt") == b"it is "
            assert (await server.portal.job(6))["client"] == AWAY


def test_each_client_is_known_by_its_highest_id(original: OriginalFolder, tmp_path: Path) -> None:
    """Of all jobs that it had, of whatever service, whether they have ended or not."""
    original.add("failed", {"run.sh": "true"}, dest_id=40, service="Other-Kind")
    original.add("completed", {"run.sh": "true"}, dest_id=70, service="alone")
    original.add("running", {"run.sh": "true"}, dest_id=5, service="third")
    config = config_of(
        tmp_path, {"example": [AWAY], "other_kind": [AWAY], "alone": ["http://b", "http://c"]}
    )

    take_over(original, config, "third=http://d/")

    assert sorted(map(tuple, rows_of(config, "original_clients"))) == sorted(
        [(instance_of(AWAY), 40, 0), (instance_of("http://d"), 5, 0)]
    )
    assert {(row["instance"], row["address"]) for row in rows_of(config, "clients")} == {
        (instance_of(AWAY), AWAY),
        (instance_of("http://d"), "http://d"),
    }


def test_a_client_is_found_by_the_url_of_uploads(original: OriginalFolder, tmp_path: Path) -> None:
    """As the original's settings name it."""
    address = ClientAddress("http://a/x", "http://a/x/submit", "http://a/x/get", "http://a/x/kill")
    config = server_config(
        tmp_path / "server", services={"example": Service("example", (address,))}
    )

    take_over(original, config)

    assert {row[0] for row in rows_of(config, "original_clients")} == {instance_of("http://a/x")}


# --- again


async def test_a_second_import_changes_nothing(original: OriginalFolder, tmp_path: Path) -> None:
    """Nor does it need to be told again where the jobs are."""
    original.add("completed", {"run.sh": LARGE, "output.zip": zip_of(noise=LARGE)}, dest_id=9)
    config = config_of(tmp_path)
    take_over(original, config)
    before = _all(config)

    said = take_over(original, config_of(tmp_path, {}))

    assert said == "0 jobs are taken over, 11 were before"
    assert _all(config) == before


async def test_what_became_of_a_job_since_stays(original: OriginalFolder, tmp_path: Path) -> None:
    """Deleted, ended or cleaned: it does not come back. What the original took since, comes."""
    config = config_of(tmp_path)
    take_over(original, config)
    async with server_of(tmp_path, [AWAY]) as server:
        assert (await server.portal.request("DELETE", "/jobs/1")).status == 200
        assert (await server.portal.post("/terminate/9")).status == 200
    new = original.add("queued", {"run.sh": "true"})

    said = take_over(original, config)

    assert said == "1 jobs are taken over (1 Queued), 10 were before"
    async with server_of(tmp_path, [AWAY]) as server:
        states = [(await server.portal.job(id))["status"] for id in (1, 9, new)]
    assert states == ["Cleaned", "Killed", "Queued"]


async def test_new_ids_go_on_above(original: OriginalFolder, tmp_path: Path) -> None:
    """Also above those that the original has given, and has no record of any more."""
    for _ in range(5):
        last = original.add("queued", {"run.sh": "true"})
    original.execute("DELETE FROM jobs WHERE id > 10")
    take_over(original, config_of(tmp_path))

    async with server_of(tmp_path, [AWAY]) as server:
        assert await server.portal.upload("true") == last + 1


def test_a_client_that_began_its_ids_again_since_is_known_for_that(
    original: OriginalFolder, tmp_path: Path
) -> None:
    """What the original knew of its ids says nothing of those that it gives now."""
    config = config_of(tmp_path)
    take_over(original, config)
    with bare_store(config.db_path) as store:
        store.execute("UPDATE original_clients SET highest_id = 2, resets = 1")
    original.add("failed", {"run.sh": "true"}, dest_id=9)

    take_over(original, config)

    assert [tuple(row) for row in rows_of(config, "original_clients")] == [
        (instance_of(AWAY), 2, 1)
    ]


# --- where things are


async def test_its_folder_may_become_ours(original: OriginalFolder, tmp_path: Path) -> None:
    """With its database in it, as its compose file has that: what it left stays beside ours."""
    original.data = original.data.rename(tmp_path / "server")
    original.database = original.database.rename(original.data / "db.sqlite")
    inside = original.data / "orch.sqlite"
    before = {path: path.stat().st_mtime_ns for path in original.data.rglob("*")}

    take_over(original, replace(config_of(tmp_path), db_path=inside))

    for _ in range(2):
        async with server_of(tmp_path, [AWAY], db_path=inside) as server:
            assert (await server.portal.get("/download/1")).status == 200
            await server.app[CLEANER].run_once()
    assert before.items() <= {p: p.stat().st_mtime_ns for p in original.data.rglob("*")}.items()


@pytest.mark.parametrize("jobs", ["/srv/a/", "relative/", ""], ids=repr)
def test_loc_says_only_the_name_of_a_folder(
    original: OriginalFolder, tmp_path: Path, jobs: str
) -> None:
    """Wherever it was then."""
    original.execute(
        "UPDATE jobs SET loc = ? || replace(loc, rtrim(loc, replace(loc, '/', '')), '')", jobs
    )

    assert "2 Completed" in take_over(original, config_of(tmp_path))


@pytest.mark.parametrize("loc", ["", "/", "..", "/srv/..", "/srv/.", "x\0y"], ids=repr)
def test_no_loc_leads_elsewhere(original: OriginalFolder, tmp_path: Path, loc: str) -> None:
    """What is outside of DATA is nobody's input."""
    original.folder.joinpath("run.sh").write_text("true")
    original.data.joinpath("srv").mkdir()
    id = original.add("queued", {"run.sh": "true"})
    original.execute("UPDATE jobs SET loc = ? WHERE id = ?", loc, id)

    take_over(original, config_of(tmp_path))

    assert jobs_of(config_of(tmp_path))[id]["status"] == "Failed"
