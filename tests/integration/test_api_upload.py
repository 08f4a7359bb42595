"""POST /upload: what is taken, what the answer says, and what is on disk then."""

from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from support.lonely import Lonely, lonely_server, service
from support.portal import Files
from support.system import System

RUN = {"run.sh": "true"}


@pytest.fixture
async def lonely(tmp_path: Path) -> AsyncIterator[Lonely]:
    """A server whose client is away."""
    async with lonely_server(tmp_path) as own:
        yield own


async def test_an_upload_is_answered_with_its_job(lonely: Lonely) -> None:
    """201, where to find the job, and the beginning of its record, each field of its type."""
    answer = await lonely.portal.try_upload(RUN, user_id=7, ref="mine")

    assert answer.status == 201
    assert answer.headers["Location"] == "/jobs/1"
    assert answer.headers["X-Job-Status"] == "Queued"
    loc, message = answer.json["loc"], answer.json["message"]
    assert answer.json == {
        "id": 1,
        "user_id": 7,
        "service": "example",
        "status": "Queued",
        "loc": loc,
        "dest_id": "",
        "message": message,
    }
    assert Path(loc).parent == lonely.data_path / "jobs"
    assert message == "The job waits for its turn."
    assert (await lonely.portal.get(answer.headers["Location"])).json["id"] == 1


@pytest.mark.parametrize("user_id", [0, 1, 2**63 - 1, " 5 ", "007"])
async def test_every_user_that_can_be_is_taken(lonely: Lonely, user_id: int | str) -> None:
    """From 0 to 2^63 - 1, and back as a number."""
    id = await lonely.portal.upload(RUN, user_id=user_id)

    assert (await lonely.portal.job(id))["user_id"] == int(user_id)


@pytest.mark.parametrize("spelled", ["my_tool_2", "My-Tool.2", "MY.TOOL-2", " my_tool-2 "])
async def test_services_compare_without_regard_to_spelling(tmp_path: Path, spelled: str) -> None:
    """Case does not matter, and '-' and '.' are the same as '_'."""
    async with lonely_server(tmp_path, service("my_tool_2")) as lonely:
        answer = await lonely.portal.try_upload(RUN, service=spelled)

    assert (answer.status, answer.json["service"]) == (201, "my_tool_2")


@pytest.mark.parametrize("ref", [None, "", "x" * 200, "ü€𝄞" * 66, "a\0b", "../;'\"\n"])
async def test_any_text_is_a_ref(lonely: Lonely, ref: str | None) -> None:
    """The portal gets its own name back as it gave it, up to 200 characters of any script."""
    id = await lonely.portal.upload(RUN, ref=ref)

    assert (await lonely.portal.job(id))["ref"] == ref


async def test_any_field_name_is_good_for_a_file(system: System) -> None:
    """Every part with a file name is a file of the job, whatever its field is called."""
    form = aiohttp.FormData()
    form.add_field("file", b"cat a.txt b.txt > c.txt", filename="run.sh")
    form.add_field("user_id", "1")
    form.add_field("upload[]", b"a", filename="a.txt")
    form.add_field("service", "example")
    form.add_field("service", b"b", filename="b.txt")

    answer = await system.portal.post("/upload", data=form)

    assert answer.status == 201, answer
    await system.portal.ended(answer.json["id"])
    result = await system.portal.result(answer.json["id"])
    assert result.read("c.txt") == b"ab"


async def test_files_are_kept_under_their_own_names(system: System) -> None:
    """The part after the last '/'; what browsers encode in a name is decoded, nothing else."""
    names = {
        "some/where/run.sh": "run.sh",
        "../up.txt": "up.txt",
        "two words.txt": "two words.txt",
        "µ.pdb": "µ.pdb",
        "q%22%0x%41.txt": 'q"%0x%41.txt',
    }
    id = await system.portal.upload(dict.fromkeys(names, "true"))

    await system.portal.ended(id)
    result = await system.portal.result(id)
    assert {name for name in result.namelist() if not name.startswith(".orch")} == set(
        names.values()
    )


@pytest.mark.parametrize("size", [1000, 64 * 1024, 64 * 1024 + 1, 900_000])
async def test_files_arrive_whole_whatever_their_size(system: System, size: int) -> None:
    """Small files, kept in the database, and large ones, kept on disk, are what was uploaded."""
    content = bytes(range(256)) * (size // 256 + 1)
    run = "cmp in.bin in2.bin && rm in2.bin"
    files: Files = {"run.sh": run, "in.bin": content[:size], "in2.bin": content[:size]}
    id = await system.portal.upload(files)

    record = await system.portal.ended(id)

    assert record["status"] == "Completed", record
    assert record["input_bytes"] == 2 * size + len(run)
    assert (await system.portal.result(id)).read("in.bin") == content[:size]


async def test_large_files_lie_in_the_folder_that_the_answer_names(lonely: Lonely) -> None:
    """Once it is answered they are in their place, and nothing is left where they arrived."""
    big = b"x" * 1_000_000
    files: Files = {"run.sh": "true", "big.bin": big, "empty": b""}

    answer = await lonely.portal.try_upload(files)

    folder = Path(answer.json["loc"], "input")
    assert sorted(path.name for path in folder.iterdir()) == ["big.bin", "empty", "run.sh"]
    assert (folder / "big.bin").read_bytes() == big
    assert not list(lonely.data_path.glob("tmp/*/*"))


async def test_jobs_get_numbers_that_only_grow(lonely: Lonely) -> None:
    """Also across users, and after others are gone."""
    first = await lonely.portal.upload(RUN)
    await lonely.portal.request("DELETE", f"/jobs/{first}")
    others = [await lonely.portal.upload(RUN, user_id=user) for user in (2, 1)]

    assert [first, *others] == [1, 2, 3]
