"""At start: the index is rebuilt from what lies on the disk."""

import logging
from pathlib import Path

from orchestrator_client import supervisor
from orchestrator_client.identity import Identity
from orchestrator_client.payloads import Payloads
from orchestrator_client.verdict import LOST_WITH_MACHINE
from orchestrator_client.workdir import Workdir, all_ids
from orchestrator_shared.folders import remove_tree

log = logging.getLogger(__name__)


def rebuild(data_path: Path, payloads: Payloads, identity: Identity) -> None:
    """Take every payload on the disk into the index, in the state that its files show.

    What was never taken as a whole, and what was being received or removed, goes.
    """
    for left in (data_path / "tmp").iterdir():
        remove_tree(left)
    for id in all_ids(data_path):
        identity.saw(id)
        _take_up(Workdir(data_path, id), payloads)


def _take_up(workdir: Workdir, payloads: Payloads) -> None:
    id = workdir.id
    if (taken := workdir.claim()) is None:
        workdir.remove()
        return
    claim, went_down = taken
    payloads.insert(id, claim.server, claim.job, claim.attempt, claim.service)
    ended = workdir.read_end()
    if ended is not None and (not went_down or workdir.is_whole(ended[0])):
        payloads.set_ended(id, *ended)
        if ended[0].result_size is not None:
            workdir.remove_work()
    elif went_down:
        # Nothing here was fsynced: inputs, exit status and result may all be cut short.
        log.warning("payload %d is lost: the machine went down", id)
        payloads.set_ended(id, workdir.write_end(LOST_WITH_MACHINE))
    elif "started" in (records := supervisor.read_run(str(workdir.run))):
        payloads.set_running(id, records["started"].get("pid", 0))
        if records.get("killed", {}).get("cause") == "operator":
            payloads.set_killed(id)
