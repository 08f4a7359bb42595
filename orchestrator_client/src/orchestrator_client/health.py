"""What is wrong with the client, if anything."""

from collections.abc import Sequence
from typing import Any

from orchestrator_client.config import Config
from orchestrator_client.identity import Identity
from orchestrator_client.runner import Runner
from orchestrator_client.standing import Standing
from orchestrator_shared import __version__
from orchestrator_shared.clocks import Clock
from orchestrator_shared.errors import Transient
from orchestrator_shared.folders import check_free_disk
from orchestrator_shared.protocol import PROTOCOL
from orchestrator_shared.tasks import BackgroundTask


class Health:
    """Asks every part of the client how it fares."""

    def __init__(
        self,
        config: Config,
        identity: Identity,
        runner: Runner,
        standing: Standing,
        clock: Clock,
        tasks: Sequence[BackgroundTask],
    ) -> None:
        self._config = config
        self._identity = identity
        self._runner = runner
        self._standing = standing
        self._clock = clock
        self._tasks = tasks

    def problems(self) -> list[str]:
        """What is wrong, in a sentence each; empty where all is well."""
        found = [task.problem for task in self._tasks]
        found += [self._standing.why, self._clock.problem]
        if stuck := len(self._runner.stuck):
            found.append(f"slots taken by processes that outlive SIGKILL: {stuck}")
        try:
            check_free_disk(self._config.data_path, self._config.min_free_disk)
        except (Transient, OSError) as error:
            found.append(str(error))
        return [problem for problem in found if problem]

    def report(self) -> dict[str, Any]:
        """What GET /health answers."""
        problems = self.problems()
        return {
            "status": "unhealthy" if problems else "healthy",
            "problems": problems,
            "version": __version__,
            "protocol": PROTOCOL,
            "instance": self._identity.instance,
            "service": self._config.service,
            "slots": self._config.slots,
            "slots_in_use": self._runner.slots_in_use,
        }
