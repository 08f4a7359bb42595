"""A wall clock of the tests' own, that can be set while programs run."""

from pathlib import Path

import pytest

#: What .ci/run installs for it (Debian: faketime).
LIBRARY = "libfaketimeMT.so.1"


def _library() -> Path | None:
    places = [*Path("/usr/lib").glob(f"*/faketime/{LIBRARY}"), Path("/usr/lib/faketime", LIBRARY)]
    found = [place for place in places if place.exists()]
    return found[0] if found else None


class WallClock:
    """The time that `time.time()` gives in programs with this environment; all else that
    measures time is as it was."""

    def __init__(self, folder: Path) -> None:
        library = _library()
        if library is None:
            pytest.skip("libfaketime is not installed (Debian: apt-get install faketime)")
        self._file = folder / "wall-clock"
        self.set(0)
        self.environment = {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            # It is read again whenever somebody looks at the clock.
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_DONT_RESET": "1",
            # A program that is killed would leave it behind.
            "FAKETIME_DISABLE_SHM": "1",
            # The times of files that are there already do not move with the clock.
            "NO_FAKE_STAT": "1",
        }

    def set(self, seconds: int) -> None:
        """From now on the clock shows so many seconds more than it would."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{seconds:+d}\n")
        new.replace(self._file)
