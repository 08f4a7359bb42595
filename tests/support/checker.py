"""Whether every acknowledged job reached its one end, with its own result, and ran as it should.

It believes no program: it reads the server's database and disk, and the file in which each run.sh
writes down that it has begun.
"""

import hashlib
import io
import sqlite3
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator_shared.status import ENDED, TRANSITIONS, Status

#: What run.sh begins with: it says which attempt of which job begins, and at which client.
BEGIN = 'echo "$ORCH_JOB_ID $ORCH_ATTEMPT $WHERE" >> "$STARTS"\n'

Row = sqlite3.Row


@dataclass(frozen=True)
class Work:
    """A job as its test knows it: what it uploads, and what has to become of it."""

    #: What it is called in a message.
    label: str
    token: bytes
    files: Mapping[str, bytes] = field(repr=False)
    ends: frozenset[str]
    exit_code: int | None
    #: The content of files that a Completed result has.
    made: Mapping[str, bytes] = field(repr=False)


def work(
    token: str,
    *,
    label: str = "job",
    script: str = "",
    content: bytes = b"",
    exit_code: int = 0,
    ends: Iterable[str] = (),
) -> Work:
    """A job that gives its token and its content back, each in a file of another name."""
    lines = [BEGIN, script, "cat token.in > token.out"]
    files, made = {"token.in": token.encode()}, {"token.out": token.encode()}
    if content:
        lines.append("cat content.in > content.out; rm content.in")
        files["content.in"] = made["content.out"] = content
    lines.append(f"exit {exit_code}\n")
    files["run.sh"] = "\n".join(lines).encode()
    expected = frozenset(ends) or frozenset({"Failed" if exit_code else "Completed"})
    return Work(label, token.encode(), files, expected, exit_code, made)


@dataclass
class Counters:
    """What was counted; the last three are 0 if the promise was kept."""

    jobs: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    #: Attempt numbers that were given.
    attempts: int = 0
    #: Starts of run.sh beyond the first of a job.
    extra_runs: int = 0
    #: Starts of run.sh beyond the first of an attempt.
    double_runs: int = 0
    #: Acknowledged jobs without a record, without an end, or with one that was not theirs.
    lost: int = 0
    #: Results that are damaged, or another job's.
    wrong: int = 0

    @property
    def kept(self) -> bool:
        """Whether nothing was lost, wrong, or run twice."""
        return not (self.lost or self.wrong or self.double_runs)


class Checker:
    """Everything that was acknowledged, and what has become of it."""

    def __init__(self, server: Path, clients: Iterable[Path], starts: Path) -> None:
        """The folders in which server and clients were started."""
        self.database = server / "orch-server.sqlite"
        self.works: dict[int, Work] = {}
        self._data = server / "server-data"
        self._clients = [client / "client-data" for client in clients]
        self._starts = starts

    def check(self) -> Counters:
        """Fail with everything that is wrong; else give back what was counted."""
        counters, problems = self.look()
        assert not problems, "\n".join(problems)
        return counters

    def look(self) -> tuple[Counters, list[str]]:
        """What was counted, and everything that is wrong, a line each."""
        counters, problems = Counters(jobs=len(self.works)), list[str]()
        starts = self.starts()
        records, history, results = self._read()
        for (job, attempt), where in sorted(starts.items()):
            if len(where) > 1:
                counters.double_runs += len(where) - 1
                problems.append(f"job {job}: attempt {attempt} was started at {where}")
        for job, record in records.items():
            counters.attempts += record["attempt"]
            begun = {attempt for of, attempt in starts if of == job}
            counters.extra_runs += max(0, len(begun) - 1)
            found = _history_problems(record, history[job])
            if not begun <= set(range(1, record["attempt"] + 1)):
                found.append(f"attempts {begun} were started, it has {record['attempt']}")
            problems += [f"{self._name(job)}: {problem}" for problem in found]
        for job, own in self.works.items():
            end, lost, wrong = self._fate(own, records.get(job), results.get(job))
            counters.ends[end or "none"] += 1
            counters.lost += bool(lost)
            counters.wrong += bool(wrong)
            found = [problem for problem in (lost, wrong) if problem]
            if end == Status.COMPLETED and len(starts[job, records[job]["attempt"]]) != 1:
                found.append(f"the attempt that ended it was never started: {dict(starts)}")
            problems += [f"{self._name(job)}: {problem}" for problem in found]
        return counters, problems

    def starts(self) -> defaultdict[tuple[int, int], list[str]]:
        """Job and attempt of each run.sh that has begun, and where; more than one is too much."""
        found: defaultdict[tuple[int, int], list[str]] = defaultdict(list)
        if self._starts.exists():
            for line in self._starts.read_text().splitlines():
                job, attempt, where = line.split(" ")
                found[int(job), int(attempt)].append(where)
        return found

    def attempts(self, job: int) -> list[int]:
        """The attempts of a job that were started."""
        return [attempt for of, attempt in sorted(self.starts()) if of == job]

    def changes(self) -> int:
        """How many changes of state there have been."""
        connection = sqlite3.connect(f"file:{self.database}?mode=ro", uri=True, timeout=30)
        try:
            count: int = connection.execute("SELECT max(seq) FROM history").fetchone()[0] or 0
            return count
        finally:
            connection.close()

    def run_again(self) -> list[str]:
        """Every job of which more than one attempt was started, and why."""
        records, history, _ = self._read()
        return [
            f"{self._name(job)}: "
            + ", ".join(f"{row['new']}{row['attempt']} ({row['reason']})" for row in history[job])
            for job in records
            if len(self.attempts(job)) > 1
        ]

    def unended(self) -> list[str]:
        """Every job that has not ended, acknowledged or not, and its way up to now."""
        records, history, _ = self._read()
        return [
            f"{self._name(job)} is {record['status']} ({record['reason']}): "
            + " → ".join(f"{row['new']}{row['attempt']}" for row in history[job])
            for job, record in records.items()
            if record["ended_as"] is None
        ]

    def left_over(self) -> list[str]:
        """What lies on the disks though all has ended: of the server's way, and of its clients."""
        found = [*self._data.glob("tmp/*/*")]
        for client in self._clients:
            for name in ("payloads", "work", "tmp"):
                found += client.glob(f"{name}/*")
        return [str(path) for path in found]

    def unowned(self) -> list[str]:
        """Files of jobs on the server's disk that no record names."""
        records, _, results = self._read()
        owned = {
            record["folder"]: {"input"} | {row["file"] for row in (results.get(job),) if row}
            for job, record in records.items()
            if record["status"] != Status.CLEANED
        }
        return [
            str(path)
            for folder in self._data.glob("jobs/*")
            for path in (folder.iterdir() if folder.name in owned else [folder])
            if path.name not in owned.get(folder.name, ())
        ]

    # ---

    def _name(self, job: int) -> str:
        own = self.works.get(job)
        return f"job {job} ({own.label})" if own else f"job {job} (not acknowledged)"

    def _read(self) -> tuple[dict[int, Row], defaultdict[int, list[Row]], dict[int, Row]]:
        connection = sqlite3.connect(f"file:{self.database}?mode=ro", uri=True, timeout=30)
        try:
            connection.row_factory = sqlite3.Row
            connection.execute("BEGIN")
            records = {row["id"]: row for row in connection.execute("SELECT * FROM jobs")}
            results = {row["job"]: row for row in connection.execute("SELECT * FROM results")}
            history = defaultdict(list)
            for row in connection.execute("SELECT * FROM history ORDER BY seq"):
                history[row["job"]].append(row)
            return records, history, results
        finally:
            connection.close()

    def _fate(
        self, own: Work, record: Row | None, result: Row | None
    ) -> tuple[str | None, str | None, str | None]:
        """The end of a job; why it counts as lost; why its result is wrong."""
        if record is None:
            return None, "it has no record", None
        end: str | None = record["ended_as"]
        reached = f"{end}, exit status {record['exit_code']}, fault {record['fault']}: " + (
            record["reason"] or ""
        )
        if end is None:
            return None, f"it has not ended: {record['status']}, {record['reason']}", None
        if end not in own.ends:
            return end, f"its end had to be {'/'.join(own.ends)}: {reached}", None
        if end == Status.KILLED or record["fault"] == "infrastructure":
            return end, None, None
        if end != Status.INVALID and record["exit_code"] != own.exit_code:
            return end, f"its exit status had to be {own.exit_code}: {reached}", None
        if record["status"] == Status.CLEANED or end == Status.INVALID:
            return end, None, None
        return end, None, self._result_problem(own, record, result)

    def _result_problem(self, own: Work, record: Row, result: Row | None) -> str | None:
        if result is None:
            return "it has no result"
        content = result["body"]
        if content is None:
            path = self._data / "jobs" / record["folder"] / result["file"]
            if not path.exists():
                return f"its result {path} is gone"
            content = path.read_bytes()
        return result_problem(own, content, result["sha256"])


def result_problem(own: Work, content: bytes, sha256: str | None = None) -> str | None:
    """Why these bytes are not the result of this job; None if they are."""
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        return f"its result of {len(content)} bytes has another digest than its record says"
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as zipped:
            found = {name: zipped.read(name) for name in zipped.namelist()}
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        return f"its result is no zip: {error}"
    for name, expected in {"token.in": own.token, **own.made}.items():
        if found.get(name) != expected:
            return f"{name} in its result is {found.get(name, b'missing')[:60]!r}, not its own"
    return None


def _history_problems(record: Row, history: list[Row]) -> list[str]:
    """Whether each change was allowed, and none is missing."""
    problems = []
    before: str | None = None
    attempt = 0
    clients: defaultdict[int, set[str]] = defaultdict(set)
    for row in history:
        old, new = row["old"], row["new"]
        if old != before:
            problems.append(f"it went from {old} to {new} when it was {before}")
        if old is None and new != Status.QUEUED:
            problems.append(f"it began as {new}")
        if old is not None and Status(new) not in TRANSITIONS[Status(old)]:
            problems.append(f"it went from {old} to {new}")
        # A restore goes on far above the attempts that may have been given since the backup.
        rises = row["attempt"] > attempt if new == Status.PROCESSING else row["attempt"] == attempt
        if not rises:
            problems.append(f"attempt {row['attempt']} came after {attempt} as {new}")
        before, attempt = new, row["attempt"]
        if row["client"]:
            clients[attempt].add(row["client"])
    ends = [row["new"] for row in history if row["new"] in ENDED]
    if len(ends) > 1 or ends != [record["ended_as"]] * len(ends):
        problems.append(f"its ends are {ends}, its record says {record['ended_as']}")
    if before != record["status"] or record["version"] < len(history):
        problems.append(f"version {record['version']}, {record['status']}: {len(history)} changes")
    problems += [f"attempt {n} was at {names}" for n, names in clients.items() if len(names) > 1]
    return problems
