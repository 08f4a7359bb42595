"""A deployment by deploy/compose."""

import json
from pathlib import Path
from typing import Any

from deploy.building import VERSION
from deploy.engine import DOCKER, ROOT, Engine, build_settings
from support.portal import Portal

FILE = Path("deploy/compose/compose.yaml")
SERVICES = ("server", "client-1", "client-2")
ENDS = ("Completed", "Failed", "Invalid", "Killed")


class Deployment:
    """The project `job-orchestrator` of an engine."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def up(self) -> None:
        """`make up`; all of it is healthy then."""
        self.engine.run("make", "up", *build_settings(self.engine.folder / "building"))

    def down(self) -> None:
        """`make down`; the volumes stay."""
        self.engine.run("make", "down")

    def remove(self) -> None:
        """Stop it, and remove its volumes."""
        self.compose("down", "--volumes", "--timeout", "5")

    def compose(self, *arguments: str, version: str = VERSION) -> str:
        """What a command of Compose prints, with images of this version."""
        return self.engine.run(
            DOCKER, "compose", "-f", str(ROOT / FILE), *arguments, IMAGE_VERSION=version
        )

    def change(self, version: str, *services: str) -> None:
        """Go to another version of these alone."""
        self.compose("up", "--detach", "--wait", "--no-build", "--no-deps", *services,
                     version=version)  # fmt: skip

    def container(self, service: str) -> str:
        """The container of a service."""
        return self.compose("ps", "--all", "--quiet", service).strip()

    def inspect(self, service: str) -> dict[str, Any]:
        """What the engine knows of a container."""
        [known] = json.loads(self.engine.docker("inspect", self.container(service)))
        found: dict[str, Any] = known
        return found

    def execute(self, service: str, *command: str, check: bool = True) -> str:
        """What a command prints inside a container."""
        return self.compose("exec", "--no-TTY", service, *command) if check else (
            self.engine.run(DOCKER, "compose", "-f", str(ROOT / FILE), "exec", "--no-TTY", service,
                            *command, check=False, IMAGE_VERSION=VERSION)
        )  # fmt: skip

    def address(self, service: str, network: str) -> str:
        """The address of a container in one of the project's networks."""
        networks = self.inspect(service)["NetworkSettings"]["Networks"]
        found: str = networks[f"job-orchestrator_{network}"]["IPAddress"]
        assert found
        return found


def service_of(record: dict[str, Any]) -> str:
    """The Compose service of the client that has a job."""
    url: str = record["client"]
    return url.removeprefix("http://").removesuffix(":9000")


async def ends(portal: Portal) -> dict[int, list[str]]:
    """The ends of every job, as told by /events: one each, if all is well."""
    found: dict[int, list[str]] = {}
    after = 0
    while page := (await portal.get(f"/events?after={after}&limit=500")).json["events"]:
        for event in page:
            own = found.setdefault(event["job"], [])
            if event["to"] in ENDS:
                own.append(event["to"])
        after = page[-1]["seq"]
    return found
