"""`make demo`: a real job from upload to result, and nothing left behind."""

import asyncio
import contextlib
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What the demo needs of a checkout, where no other run of it is in the way."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    (tmp_path / ".venv-example").symlink_to(ROOT / ".venv-example")
    return tmp_path


@contextlib.asynccontextmanager
async def running_demo(checkout: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """The demo as a process; whatever is left of it at the end is killed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(checkout / "examples" / "demo.py"),
        cwd=checkout,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        for left in working_below(checkout):
            with contextlib.suppress(psutil.NoSuchProcess):
                left.kill()


async def run_demo(checkout: Path) -> tuple[int | None, str, str]:
    """Run the demo to its end: exit code, output, errors. Nothing of it may be left."""
    async with running_demo(checkout) as process:
        output, errors = await process.communicate()
        assert_nothing_is_left(checkout)
    return process.returncode, output.decode(), errors.decode()


def working_below(folder: Path) -> list[psutil.Process]:
    """The processes that work in this folder, or below it."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid() and Path(process.cwd()).is_relative_to(folder):
                found.append(process)
    return found


def assert_nothing_is_left(checkout: Path) -> None:
    """No process of the demo, and none of its files."""
    assert working_below(checkout) == []
    assert not (checkout / ".demo").exists()


async def test_the_demo_shows_a_result(checkout: Path) -> None:
    """It ends with 0, and shows the states of the job and the result that the example gives."""
    code, output, errors = await run_demo(checkout)

    assert (code, errors) == (0, "")
    lines = [line.strip() for line in output.splitlines()]
    expected = (ROOT / "examples" / "interface" / "expected" / "summary.txt").read_text()
    assert set(expected.splitlines()) <= set(lines)
    states = [line.split()[1] for line in lines if line[2:3] == ":"]
    assert (states[0], states[-1]) == ("Queued", "Completed")
    assert "A ASN  931 OD1  B LYS    6 NZ    4.54  charged-polar" in lines


async def test_the_demo_says_what_failed(checkout: Path) -> None:
    """A job that fails ends the demo with 1, and with what the job said."""
    (checkout / "examples" / "interface" / "run.sh").write_text("echo no such tool >&2; exit 3")

    code, output, errors = await run_demo(checkout)

    assert code == 1
    assert "run.sh ended with exit status 3" in output
    assert errors.endswith("The demo failed: the job ended as Failed\nno such tool\n")


async def test_the_demo_says_that_a_result_is_wrong(checkout: Path) -> None:
    """Another summary than the example is known to give ends it with 1."""
    expected = checkout / "examples" / "interface" / "expected" / "summary.txt"
    expected.write_text("entry: another\n")

    code, _, errors = await run_demo(checkout)

    assert code == 1
    assert "summary.txt is not the one in examples/interface/expected" in errors


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_an_interrupted_demo_leaves_nothing(checkout: Path, number: int) -> None:
    """Ctrl-C while the job runs ends both programs, the job, and what the job has started."""
    (checkout / "examples" / "interface" / "run.sh").write_text("sleep 600 & wait")
    async with running_demo(checkout) as process:
        assert process.stdout is not None
        while b" Running " not in (line := await process.stdout.readline()):
            assert line
        process.send_signal(number)
        _, errors = await process.communicate()
        assert_nothing_is_left(checkout)

    assert process.returncode == 130
    assert b"The demo was interrupted." in errors
