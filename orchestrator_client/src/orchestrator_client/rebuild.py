"""At start: the index is rebuilt from what lies on the disk."""

import logging
from pathlib import Path

from msgspec.structs import astuple, replace

from orchestrator_client.executors.base import RunEnd
from orchestrator_client.identity import Identity
from orchestrator_client.payloads import Payloads
from orchestrator_client.run_file import read_run
from orchestrator_client.verdict import LOST_WITH_MACHINE, judge
from orchestrator_client.workdir import Workdir, all_ids
from orchestrator_shared.folders import remove_tree

log = logging.getLogger(__name__)


def rebuild(data_path: Path, payloads: Payloads, identity: Identity, now: float) -> None:
    """Take every payload on the disk into the index, in the state that its files show.

    What is found to be lost ended `now`. What was never taken as a whole, and what was being
    received or removed, goes.
    """
    for left in (data_path / "tmp").iterdir():
        remove_tree(left)
    for id in all_ids(data_path):
        identity.saw(id)
        _take_up(Workdir(data_path, id), payloads, now)


def _take_up(workdir: Workdir, payloads: Payloads, now: float) -> None:
    id = workdir.id
    if (taken := workdir.claim()) is None:
        workdir.remove()
        return
    claim, went_down = taken
    payloads.insert(id, *astuple(claim))
    ended = workdir.read_end()
    if ended is not None and (not went_down or workdir.is_whole(ended)):
        payloads.set_ended(id, ended)
        if ended.result_size is not None:
            workdir.remove_work()
    elif went_down:
        # Of what is here only a wish was fsynced: inputs, exit status and result may all be cut.
        log.warning("payload %d: the machine went down", id)
        killed = read_run(workdir.run).get("killed")
        end = judge(RunEnd(lost=True, **killed), windows_lines=False) if killed else None
        end = replace(end or LOST_WITH_MACHINE, ended_at=now)
        payloads.set_ended(id, workdir.write_end(end))
    elif "started" in (records := read_run(workdir.run)):
        payloads.set_running(id, records["started"].get("pid", 0))
        if records.get("killed", {}).get("cause") == "operator":
            payloads.set_killed(id)
