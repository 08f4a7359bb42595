"""Fixtures that every tier uses."""

from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from support.system import System, running_system


@pytest.fixture
async def system(tmp_path: Path) -> AsyncIterator[System]:
    """A server and a client with the defaults, in this process."""
    async with running_system(tmp_path) as running:
        yield running


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    """A connection pool for a test that talks HTTP by itself."""
    async with aiohttp.ClientSession() as own:
        yield own
