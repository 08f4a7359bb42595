"""At start: the index is rebuilt from what lies on the disk."""

import logging
from pathlib import Path

from orchestrator_client import supervisor
from orchestrator_client.identity import Identity
from orchestrator_client.payloads import Payloads
from orchestrator_client.workdir import Workdir, all_ids
from orchestrator_shared.folders import remove_tree

log = logging.getLogger(__name__)


def rebuild(data_path: Path, payloads: Payloads, identity: Identity) -> None:
    """Take every payload on the disk into the index, in the state that its files show.

    What was never taken as a whole, and what was being uploaded, is removed.
    """
    for left in (data_path / "tmp").iterdir():
        remove_tree(left)
    for id in all_ids(data_path):
        identity.saw(id)
        workdir = Workdir(data_path, id)
        claim = workdir.claim()
        if claim is None:
            workdir.remove()
            continue
        payloads.insert(id, claim.server, claim.job, claim.attempt, claim.service)
        if (ended := workdir.read_end()) is not None:
            payloads.set_ended(id, *ended)
            workdir.remove_work()
        elif "started" in supervisor.read_run(str(workdir.run))[0]:
            payloads.set_running(id)
