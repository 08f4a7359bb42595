"""GET /health, /live and /: whether the server is well, lives, and is there."""

import asyncio
from pathlib import Path

import pytest

from orchestrator_shared import __version__
from support.lonely import Lonely, lonely_server
from support.system import System


async def kill_task(name: str) -> None:
    """End a background task of this process as a bug would."""
    (task,) = [task for task in asyncio.all_tasks() if task.get_name() == name]
    task.cancel()
    await asyncio.wait({task})


Report = tuple[int, dict[str, object]]


async def health(lonely: Lonely) -> Report:
    """Status and body of GET /health."""
    answer = await lonely.portal.get("/health")
    return answer.status, answer.json


def check_ill(report: Report, says: str) -> None:
    """503, and one problem, which says this."""
    status, body = report
    assert (status, body["status"]) == (503, "unhealthy")
    assert isinstance(body["problems"], list)
    (problem,) = body["problems"]
    assert says in problem


async def test_a_server_that_is_well_says_so(system: System) -> None:
    """200, with its version, its clients and its background tasks."""
    answer = await system.portal.get("/health")

    assert answer.status == 200
    assert answer.json == {
        "status": "healthy",
        "version": __version__,
        "problems": [],
        "clients": 1,
        "clients_up": 1,
        "clients_out": {},
        "paused": False,
        "tasks": {
            name: {"errors": 0, "last_error": None} for name in ("sender", "getter", "cleaner")
        },
    }


async def test_a_client_that_is_away_is_no_illness(tmp_path: Path) -> None:
    """200: the server does what it can; how many of its clients are up is said."""
    async with lonely_server(tmp_path) as lonely:
        answer = await lonely.portal.get("/health")

    assert (answer.status, answer.json["status"]) == (200, "healthy")
    assert (answer.json["clients"], answer.json["clients_up"]) == (1, 0)


@pytest.mark.parametrize("name", ["sender", "getter", "cleaner"])
async def test_a_task_that_died_makes_it_ill(tmp_path: Path, name: str) -> None:
    """503 that names it."""
    async with lonely_server(tmp_path) as lonely:
        await kill_task(name)

        check_ill(await health(lonely), f"the {name} died")


async def test_a_stream_that_died_makes_it_ill(tmp_path: Path) -> None:
    """503: a client that nobody follows any more would get no jobs."""
    async with lonely_server(tmp_path) as lonely:
        (base,) = [t.get_name() for t in asyncio.all_tasks() if t.get_name().startswith("http://")]
        await kill_task(base)

        check_ill(await health(lonely), f"the stream of {base} died")


async def test_a_full_disk_makes_it_ill(tmp_path: Path) -> None:
    """503 while less than MIN_FREE_DISK is free."""
    async with lonely_server(tmp_path, min_free_disk=2**62) as lonely:
        check_ill(await health(lonely), f"MIN_FREE_DISK is {2**62}")


async def test_a_folder_that_is_gone_makes_it_ill(tmp_path: Path) -> None:
    """503 for a disk that cannot even be asked."""
    async with lonely_server(tmp_path) as lonely:
        moved = lonely.data_path.rename(tmp_path / "moved")
        answer = await health(lonely)
        moved.rename(lonely.data_path)

        check_ill(answer, "No such file")
        assert (await health(lonely))[0] == 200


async def test_a_process_that_turns_says_so_however_ill(tmp_path: Path) -> None:
    """/live is 200 where /health is 503: a restart would not mend a full disk."""
    async with lonely_server(tmp_path, min_free_disk=2**62) as lonely:
        answer = await lonely.portal.get("/live")

    assert (answer.status, answer.json) == (200, {"status": "live"})


async def test_the_root_answers(tmp_path: Path) -> None:
    """`pong`, whatever else is so."""
    async with lonely_server(tmp_path) as lonely:
        answer = await lonely.portal.get("/")

    assert (answer.status, answer.json) == (200, {"message": "pong"})
