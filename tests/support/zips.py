"""Packing a directory in a test, and looking at what came of it."""

import io
import shutil
import subprocess
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from orchestrator_shared.archive import zip_directory

SKIPPED = ".orchestrator/skipped.txt"


def read_zip(chunks: Iterable[bytes]) -> zipfile.ZipFile:
    """A zip that has been found whole."""
    opened = zipfile.ZipFile(io.BytesIO(b"".join(chunks)))
    assert opened.testzip() is None
    return opened


def packed(
    root: Path, extra: Mapping[str, Path | bytes] | None = None, *, live: bool = False
) -> zipfile.ZipFile:
    """The zip of a directory."""
    return read_zip(zip_directory(root, extra or {}, live=live))


def files_in(zipped: zipfile.ZipFile) -> dict[str, bytes]:
    """Every file of a zip but the list of what was left out."""
    return {
        info.filename: zipped.read(info)
        for info in zipped.infolist()
        if not info.is_dir() and info.filename != SKIPPED
    }


def skipped_in(zipped: zipfile.ZipFile) -> dict[str, str]:
    """What was left out, and why."""
    if SKIPPED not in zipped.namelist():
        return {}
    lines = zipped.read(SKIPPED).decode().splitlines()
    assert all(line.count("\t") == 1 for line in lines), lines
    return dict(line.split("\t") for line in lines)


def unzip_accepts(path: Path) -> bool:
    """Whether Info-ZIP finds no fault in a zip; True where it is not installed."""
    if shutil.which("unzip") is None:
        return True
    done = subprocess.run(["unzip", "-tqq", str(path)], capture_output=True, check=False)
    return done.returncode == 0
