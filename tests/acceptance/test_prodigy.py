"""PRODIGY, a tool of WeNMR, as a service (`make test-prodigy`)."""

import os
from pathlib import Path

import aiohttp
import pytest

from support.portal import Portal
from support.processes import programs

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
TOOLS = ROOT / ".venv-prodigy" / "bin"


@pytest.mark.prodigy
async def test_prodigy_predicts_the_affinity(
    tmp_path: Path, session: aiohttp.ClientSession
) -> None:
    """The real tool gives the value that its README promises for 2OOB."""
    assert (TOOLS / "prodigy").exists(), "make test-prodigy installs it"
    path = f"{TOOLS}{os.pathsep}{os.environ['PATH']}"
    async with programs(tmp_path, client={"PATH": path}) as (server, _):
        portal = Portal(server.url, session)
        id = await portal.upload(
            {
                "run.sh": (EXAMPLES / "prodigy" / "run.sh").read_bytes(),
                "2oob.pdb": (EXAMPLES / "interface" / "2oob.pdb").read_bytes(),
            }
        )

        record = await portal.ended(id)

        assert record["status"] == "Completed", record["stderr_tail"]
        result = await portal.result(id)
    expected = (EXAMPLES / "prodigy" / "expected" / "affinity.txt").read_bytes()
    assert expected == b"-6.2 kcal/mol\n"
    assert result.read("affinity.txt") == expected
    assert b"Predicted binding affinity" in result.read("prodigy.out")
