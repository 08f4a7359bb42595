"""The command probe of both programs: what a container engine asks every few seconds."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from support.commands import Said, command
from support.processes import Program

BOTH = pytest.mark.parametrize("name", ["orch-server", "orch-client"])


@pytest.fixture
async def program(tmp_path: Path, name: str) -> AsyncIterator[Program]:
    """One of the programs, not yet started."""
    own = Program(name, tmp_path, {})
    yield own
    await own.close()


async def probe(program: Program, *words: str) -> Said:
    """Ask it."""
    return await command(program, "--port", str(program.port), "probe", *words)


@BOTH
@pytest.mark.parametrize("route", ["health", "live"])
async def test_one_that_is_well(program: Program, route: str) -> None:
    """Ends with 0, and says how it is."""
    await program.start()

    said = {"health": "healthy\n", "live": "live\n"}[route]
    assert await probe(program, route) == Said(0, said, "")


@BOTH
async def test_health_is_what_goes_without_saying(program: Program) -> None:
    """503 ends with 1, and what is wrong; live it is all the same."""
    program.environment["MIN_FREE_DISK"] = "1000000T"
    await program.start()

    said = await probe(program)

    assert (said.code, (await probe(program, "live")).code) == (1, 0)
    assert "/health answers 503: " in said.refusal
    assert "free" in said.refusal


@BOTH
async def test_one_that_does_not_run(program: Program) -> None:
    """Ends with 1, and where it was looked for."""
    await program.start()
    await program.stop()

    assert f"127.0.0.1:{program.port}/health does not answer" in (await probe(program)).refusal


@BOTH
async def test_one_that_listens_on_every_address(program: Program) -> None:
    """That is none to connect to."""
    await program.spawn("--port", "0", "--host", "0.0.0.0")  # noqa: S104 - it is what it is about
    program.port = int((await program.logged(r"listening on http://0\.0\.0\.0:(\d+)"))[1])

    said = await command(program, "--host", "0.0.0.0", "--port", str(program.port), "probe")  # noqa: S104
    assert said == Said(0, "healthy\n", "")


@pytest.mark.parametrize("name", ["orch-client"])
async def test_a_client_that_wants_a_token(program: Program, tmp_path: Path) -> None:
    """It has the same settings, so it knows it; without, only /health is answered."""
    (tmp_path / "token").write_text("of-both-sides")
    program.environment["CLIENT_TOKEN_FILE"] = str(tmp_path / "token")
    await program.start()

    assert (await probe(program, "live")).code == 0
    del program.environment["CLIENT_TOKEN_FILE"]
    assert (await probe(program, "health")).code == 0
    assert "/live answers 401: " in (await probe(program, "live")).refusal
