"""The subcommands of both programs, as an operator runs them."""

import asyncio
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from support.processes import Program


@dataclass(frozen=True)
class Said:
    """What a command ended with, and what it wrote."""

    code: int
    out: str
    errors: str

    @property
    def refusal(self) -> str:
        """The one line of a command that was refused."""
        assert self.code in (1, 2, 3), self
        assert self.out == "", self
        assert self.errors.startswith(("orch-server: ", "orch-client: ")), self
        assert self.errors.count("\n") == 1, self
        return self.errors.strip()


async def command(program: Program, *words: str | Path) -> Said:
    """Run the same program with these words where this one runs, with its settings."""
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).with_name(program.name)),
        *map(str, words),
        cwd=program.folder,
        env={"PATH": os.environ["PATH"], "MIN_FREE_DISK": "0", **program.environment},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, errors = await process.communicate()
    assert process.returncode is not None
    return Said(process.returncode, out.decode(), errors.decode())
