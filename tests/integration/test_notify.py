"""Under systemd both programs say when they listen (sd_notify(3))."""

import asyncio
import secrets
import socket
from pathlib import Path

import pytest

from support.processes import Program


@pytest.mark.parametrize("name", ["orch-server", "orch-client"])
@pytest.mark.parametrize("abstract", [False, True], ids=["a file", "an abstract name"])
async def test_a_program_that_listens_is_ready(tmp_path: Path, name: str, abstract: bool) -> None:
    """It says so once, at the place that its environment names."""
    place = f"@{secrets.token_hex(8)}" if abstract else str(tmp_path / "notify")
    program = Program(name, tmp_path, {"NOTIFY_SOCKET": place})
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as systemd:
        systemd.bind("\0" + place[1:] if abstract else place)
        await program.start()

        assert await asyncio.get_running_loop().sock_recv(systemd, 100) == b"READY=1"
        assert await program.stop() == 0
        with pytest.raises(BlockingIOError):
            systemd.recv(100)


@pytest.mark.parametrize("name", ["orch-server", "orch-client"])
async def test_where_nobody_is_told_it_runs_all_the_same(tmp_path: Path, name: str) -> None:
    """The place is gone."""
    program = Program(name, tmp_path, {"NOTIFY_SOCKET": str(tmp_path / "gone")})
    await program.start()

    assert await program.stop() == 0
