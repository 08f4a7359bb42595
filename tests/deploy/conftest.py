"""What the tests that need a Docker engine have in common."""

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from deploy.building import build_all
from deploy.compose import Deployment
from deploy.engine import Engine
from support.portal import Portal


@pytest.fixture(scope="session")
def parts() -> Path:
    """Where the programs are that no package holds; `make test-deploy` makes it."""
    return Path(os.environ["PARTS"])


@pytest.fixture(scope="session")
def engine(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """An engine that has all images, in a network without a way out."""
    own = Engine(tmp_path_factory.mktemp("engine"), parts)
    try:
        build_all(own, parts)
        own.start()
        yield own
    finally:
        own.remove()


@pytest.fixture(scope="module")
def deployment(engine: Engine) -> Iterator[Deployment]:
    """Server and clients as `make up` starts them; a test leaves them running."""
    own = Deployment(engine)
    try:
        own.up()
        yield own
    finally:
        own.remove()


@pytest.fixture
async def portal(deployment: Deployment) -> AsyncIterator[Portal]:
    """A portal on the machine of the deployment."""
    async with deployment.engine.session() as session:
        yield Portal("http://127.0.0.1:5000", session)
