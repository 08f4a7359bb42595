"""A disk that fails ends the server: nothing more can be promised. No disk here can be made to
fail, so a process of its own is told so in the place of the system."""

import asyncio
import sys
from pathlib import Path

import pytest

SCRIPT = """
import errno, os, sys
from pathlib import Path
from orchestrator_server.store.files import Files
from orchestrator_shared.uploads import ReceivedFile, Upload

def fail(descriptor):
    raise OSError(errno.{error}, os.strerror(errno.{error}))

files = Files(Path({data!r}))
upload = Upload(files=[ReceivedFile("run.sh")], folder=files.tmp / "upload")
upload.folder.mkdir()
(upload.folder / "run.sh").write_text("true")
fetched = files.tmp / "fetched"
fetched.write_bytes(b"zip")
os.fsync = fail
try:
    {keep}
except OSError as error:
    sys.exit("refused: " + error.strerror)
"""
KEEPS = {
    "input": "files.keep_input(upload, 'f')",
    "result": "files.keep_result(fetched, 'f', 1)",
}


async def _run(tmp_path: Path, keep: str, error: str) -> tuple[int | None, str]:
    script = SCRIPT.format(data=str(tmp_path / "data"), keep=KEEPS[keep], error=error)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, stderr=asyncio.subprocess.PIPE
    )
    _, said = await process.communicate()
    return process.returncode, said.decode()


@pytest.mark.parametrize("keep", KEEPS)
async def test_a_disk_that_fails_ends_the_server(tmp_path: Path, keep: str) -> None:
    """Code 3, and one line that names it."""
    code, said = await _run(tmp_path, keep, "EIO")
    assert code == 3
    (line,) = said.splitlines()
    assert line.startswith(
        f"orch-server: The disk of {tmp_path / 'data'} fails: Input/output error"
    )


@pytest.mark.parametrize("keep", KEEPS)
async def test_a_disk_that_is_full_does_not(tmp_path: Path, keep: str) -> None:
    """Whoever asked is told, and it goes on once there is room."""
    code, said = await _run(tmp_path, keep, "ENOSPC")
    assert (code, said.strip()) == (1, "refused: No space left on device")
