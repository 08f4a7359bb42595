"""What every answer that is an error looks like."""

from support.portal import Answer


def check_error(
    answer: Answer, status: int, says: str = "", *, id: int = 0, state: str | None = None
) -> None:
    """It has this status, names this job, and says this (among more); of a job that there is,
    it tells its state."""
    assert answer.status == status, answer
    assert answer.headers["Content-Type"].startswith("application/json")
    assert set(answer.json) == {"id", "status", "message"}
    assert (answer.json["id"], answer.json["status"]) == (id, state or "Unknown")
    assert answer.headers.get("X-Job-Status") == state
    assert says in answer.json["message"], answer.json["message"]
    assert answer.json["message"].endswith(".")
