"""The images that the tests use, built as a site builds them."""

import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

from deploy.engine import DOCKER, ROOT, Engine, build_settings, load_base

IMAGES = ("server", "client", "example", "prodigy")
PACKAGES = ("shared", "orchestrator_server", "orchestrator_client")
#: The version of this checkout, and a later one, which is the same but for its number.
VERSION: str = tomllib.loads((ROOT / "shared" / "pyproject.toml").read_text())["project"]["version"]
LATER = "0.99.0"
#: An image of a service of one's own; the docs have these lines.
OWN = """\
FROM job-orchestrator/client:{version}
USER root
RUN apt-get update && apt-get install -y --no-install-recommends bc
USER orchestrator
"""


def build_all(engine: Engine, parts: Path) -> None:
    """Build every image, of both versions, and one that is made from `client`."""
    folder = engine.folder / "building"
    folder.mkdir()
    settings = build_settings(folder)
    engine.start(builds=True)
    load_base(engine, parts)
    engine.run("make", "images", *settings)
    engine.run("make", "-C", str(later_checkout(folder)), "images", *settings)
    own = folder / "own"
    own.mkdir()
    (own / "Dockerfile").write_text(OWN.format(version=VERSION))
    engine.run(DOCKER, "build", "--network", "host", "--tag", "own", str(own), DOCKER_BUILDKIT="1")
    engine.stop()


def later_checkout(folder: Path) -> Path:
    """A copy of what images are built from, in which the version is a later one."""
    copy = folder / "later"
    left_out = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
    for name in (*PACKAGES, "examples", "deploy"):
        shutil.copytree(ROOT / name, copy / name, ignore=left_out)
    for name in ("Makefile", ".dockerignore"):
        shutil.copy(ROOT / name, copy / name)
    changed = (
        *(f"{name}/pyproject.toml" for name in PACKAGES),
        "shared/src/orchestrator_shared/__init__.py",
        "deploy/Dockerfile",
    )
    for path in map(copy.joinpath, changed):
        text = path.read_text()
        assert VERSION in text
        path.write_text(text.replace(VERSION, LATER))
    return copy


def inspect(engine: Engine, image: str) -> dict[str, Any]:
    """What the engine knows of an image."""
    [known] = json.loads(engine.docker("image", "inspect", image))
    found: dict[str, Any] = known
    return found


def image(name: str, version: str = VERSION) -> str:
    """The full name of one of ours."""
    return f"job-orchestrator/{name}:{version}"
