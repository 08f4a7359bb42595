"""Bytes that change or vanish on the way, and answers that come from somebody else."""

from pathlib import Path

import pytest

from acceptance.faults.messages import of_status
from acceptance.faults.world import PATIENCE, SCALE, eventually, world
from support.faults import Drop, Fault, Flip, Hold, Instead, Rule

pytestmark = pytest.mark.timeout(60 + 2 * PATIENCE)

#: What programs between server and client answer on their own.
NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nServer: gate\r\nContent-Length: 9\r\n\r\nnot here\n"
BAD_GATEWAY = b"HTTP/1.1 502 Bad Gateway\r\nServer: gate\r\nContent-Length: 0\r\n\r\n"
WELCOME = b"HTTP/1.1 200 OK\r\nServer: gate\r\nContent-Length: 8\r\n\r\nwelcome\n"


async def test_a_damaged_result_is_fetched_again(tmp_path: Path) -> None:
    """One byte is another, or bytes are missing: it is noticed, and never served."""
    async with world(tmp_path, clients=1) as there:
        rules = [
            Rule("state", Flip(-1), where=of_status("Completed"), times=SCALE),
            Rule("state", Drop(-40, 7), where=of_status("Completed"), skip=2),
            # Fewer than make an attempt count as lost, if all of them meet the same result.
            Rule("GET /result answer", Flip(0.5), times=min(SCALE, 4)),
        ]
        there.harm(*rules)
        for _ in range(3 * SCALE):
            await there.upload()
            await there.upload(large=True)
        await there.settled()
        assert all(rule.hits for rule in rules), rules
        assert not there.checker.run_again()


async def test_an_answer_of_another_program_decides_nothing(tmp_path: Path) -> None:
    """It does not bear our header: no job is lost, failed or taken for done because of it."""
    async with world(tmp_path, clients=1) as there:
        for answer in (NOT_FOUND, WELCOME) + (BAD_GATEWAY, NOT_FOUND) * (SCALE - 1):
            rules = [
                Rule("POST /submit answer", late := Hold(then=Instead(answer))),
                Rule("GET /result answer", Instead(answer)),
                Rule("POST /kill answer", Instead(answer)),
            ]
            there.harm(*rules)
            gate = there.gate()
            killed = await there.upload(script=there.gate().script, ends=("Killed",))
            large = await there.upload(script=gate.script, large=True)
            for id in (killed, large):
                await there.begun(id)
                await there.portal.reached(id, "Running")
            late.go.set()
            await there.terminate(killed)
            await there.portal.ended(killed)
            gate.open()
            await there.ended()
            assert all(rule.hits for rule in rules), rules
            assert not there.checker.run_again(), answer
        await there.settled()


@pytest.mark.parametrize("large", [False, True], ids=["small", "large"])
async def test_a_damaged_input_never_runs(tmp_path: Path, large: bool) -> None:
    """One byte of a file is another: the client notices, and it is sent again."""
    async with world(tmp_path, clients=1) as there:
        kind = "POST /submit" if large else "submit"
        there.harm(rule := Rule(kind, Flip(pattern=rb"(t)oken \d+ ")))
        await there.upload(large=large)
        await there.settled()
        assert rule.hits


#: The number of a job in a frame becomes that of its neighbour: 2 becomes 3.
NEIGHBOUR = Flip(pattern=rb'"job": ?(2)')


@pytest.mark.parametrize(
    ("kind", "fault"),
    [("submit", NEIGHBOUR), ("state", NEIGHBOUR), ("acknowledge", NEIGHBOUR)],
    ids=["submit", "state", "acknowledge"],
)
async def test_a_damaged_message_is_not_taken_for_another_job(
    tmp_path: Path, kind: str, fault: Fault
) -> None:
    """Two jobs run at one client, and a message about the first says the number of the second:
    nobody gets another job's files, and no job has another's end."""
    async with world(tmp_path, clients=1, client={"SLOTS": "3"}) as there:
        await there.portal.ended(await there.upload())
        gates = [there.gate(), there.gate()]
        rule = Rule(
            kind,
            fault,
            where=lambda message: (
                message.job == 2 and (kind != "state" or message.status == "Completed")
            ),
        )
        there.harm(rule)
        first = await there.upload(label="first", script=gates[0].script)
        if kind == "submit":
            await rule.hit.wait()
        second = await there.upload(label="second", script=gates[1].script)
        assert (first, second) == (2, 3)
        if kind != "submit":
            await eventually(
                lambda: there.checker.attempts(first) and there.checker.attempts(second)
            )
        gates[0].open()
        await rule.hit.wait()
        if kind == "acknowledge":
            # What it does to the second job is done before a later one has ended.
            await there.portal.ended(await there.upload(label="behind it"))
        gates[1].open()
        await there.settled(within=20)
