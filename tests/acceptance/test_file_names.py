"""Names of files pass through the whole system unchanged, whoever uploads them."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from support.portal import Portal
from support.processes import Program, programs

NAMES = [
    "two words.pdb",
    " space at both ends ",
    "no\u00a0break",
    "Übergröße Москва 蛋白質.txt",
    "zusammengesetzt u\u0308.txt",
    'it\'s "quoted".txt',
    "a;b=c.txt",
    "-rf",
    "--help",
    "100%20 percent%.txt",
    "back\\slash.txt",
    "$(touch pwned) `id` & | > < * ? [x] {y} ~ # !",
    "a&b+c=d",
    ".hidden",
    "...",
    "x" * 255,
    "ü" * 127 + "x",
    "😀" * 63 + "abc",
]


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Program]:
    """A server with a client."""
    async with programs(tmp_path) as (running, _):
        yield running


async def _comes_back(portal: Portal, id: int, files: dict[str, bytes]) -> None:
    """The zip has these files under these names, and what run.sh saw of them."""
    record = await portal.ended(id)
    assert record["status"] == "Completed", record
    result = await portal.result(id)
    names = {name for name in result.namelist() if not name.startswith(".orchestrator/")}
    assert names == {*files, "run.sh", "count"}
    assert {name: result.read(name) for name in files} == files
    assert int(result.read("count")) == len(files) + 1


#: How many files run.sh has beside it, itself among them.
RUN_SH = b"find . -type f -not -name count -printf x | wc -c > count\n"


async def test_names_pass_with_a_portal(server: Program, session: aiohttp.ClientSession) -> None:
    """Spaces, umlauts, quotes, shell characters, a leading dash, 255 bytes."""
    files = {name: name.encode() for name in NAMES}
    portal = Portal(server.url, session)
    id = await portal.upload({"run.sh": RUN_SH, **files})
    await _comes_back(portal, id, files)


async def test_names_pass_where_the_client_gets_a_request_of_its_own(
    server: Program, session: aiohttp.ClientSession
) -> None:
    """Larger files travel as multipart between server and client too."""
    files = {name: name.encode() * 1000 for name in NAMES}
    portal = Portal(server.url, session)
    id = await portal.upload({"run.sh": RUN_SH, **files})
    await _comes_back(portal, id, files)


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl here")
async def test_names_pass_with_curl(
    server: Program, session: aiohttp.ClientSession, tmp_path: Path
) -> None:
    """As a person uploads them, with `curl -F`."""
    folder = tmp_path / "upload"
    folder.mkdir()
    (folder / "run.sh").write_bytes(RUN_SH)
    files = {name: name.encode() for name in NAMES}
    arguments = ["-F", "user_id=1", "-F", "service=example", "-F", "file=@run.sh"]
    for name, content in files.items():
        (folder / name).write_bytes(content)
        escaped = f"./{name}".replace("\\", "\\\\").replace('"', '\\"')
        arguments += ["-F", f'file=@"{escaped}"']
    curl = await asyncio.create_subprocess_exec(
        "curl", "-sS", *arguments, f"{server.url}/upload",
        cwd=folder, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, _ = await curl.communicate()
    await _comes_back(Portal(server.url, session), json.loads(out)["id"], files)


@pytest.mark.parametrize("size", [1, 100_000], ids=["small", "large"])
async def test_names_that_look_encoded_pass_as_filename_star(
    server: Program, session: aiohttp.ClientSession, size: int
) -> None:
    """A plain filename with %22 stands for a quote; filename* says what it means."""
    files = dict.fromkeys(("a%22b", "a%0Db%0ac", 'both %22 and "'), b"x" * size)
    parts = [
        (b'name="user_id"', b"1"),
        (b'name="service"', b"example"),
        (b'name="file"; filename="run.sh"', RUN_SH),
    ]
    for name, content in files.items():
        encoded = "".join(f"%{byte:02X}" for byte in name.encode())
        parts.append((f"name=\"file\"; filename*=utf-8''{encoded}".encode(), content))
    body = b"".join(
        b"--b\r\nContent-Disposition: form-data; " + disposition + b"\r\n\r\n" + content + b"\r\n"
        for disposition, content in parts
    )
    portal = Portal(server.url, session)
    answer = await portal.post(
        "/upload",
        data=body + b"--b--\r\n",
        headers={"Content-Type": "multipart/form-data; boundary=b"},
    )
    assert answer.status == 201, answer
    await _comes_back(portal, answer.json["id"], files)
