"""The main job: upload → queue → send → run → get → download."""

from support.system import System


async def test_a_job_comes_back_with_its_result(system: System) -> None:
    """What run.sh made, what it printed and what was uploaded are in the zip."""
    id = await system.portal.upload(
        {"run.sh": "cat in.txt; echo made > out.txt; echo no >&2", "in.txt": "hello"}
    )

    record = await system.portal.ended(id)

    assert record["status"] == "Completed"
    assert [entry["status"] for entry in record["history"]][:2] == ["Queued", "Processing"]
    result = await system.portal.result(id)
    assert result.read("out.txt") == b"made\n"
    assert result.read("in.txt") == b"hello"
    assert result.read(".orchestrator/stdout.log") == b"hello"
    assert result.read(".orchestrator/stderr.log") == b"no\n"
    assert result.read(".orchestrator/exit_code") == b"0\n"


async def test_a_job_that_fails_says_why(system: System) -> None:
    """Its exit status and the end of its stderr are in the record, and its files are kept."""
    id = await system.portal.upload("echo broken >&2; echo half > half.txt; exit 3")

    record = await system.portal.ended(id)

    assert record["status"] == "Failed"
    assert (record["exit_code"], record["fault"]) == (3, "user")
    assert record["stderr_tail"] == "broken\n"
    assert (await system.portal.get(f"/download/{id}")).status == 204
    partial = await system.portal.get(f"/download_partial/{id}")
    assert partial.zip.read("half.txt") == b"half\n"
