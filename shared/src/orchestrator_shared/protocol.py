"""The wire between server and client: routes, headers and limits; messages.py has the messages."""

import zlib
from typing import Final

#: The version of the protocol between our server and our client.
PROTOCOL: Final = 1

H_PROTOCOL: Final = "Orchestrator-Protocol"
#: Which server speaks: the random id that its database and its DATA_PATH share.
H_SERVER: Final = "Orchestrator-Server"
#: Which client answers, and which one a request is meant for: the random id in its DATA_PATH.
H_INSTANCE: Final = "Orchestrator-Instance"
H_JOB: Final = "Orchestrator-Job"
H_ATTEMPT: Final = "Orchestrator-Attempt"
H_SERVICE: Final = "Orchestrator-Service"
#: How long the attempt may run (seconds), where its service has a limit.
H_LIMIT: Final = "Orchestrator-Limit"
#: A check of whom and what a request is about (claim_check).
H_CHECK: Final = "Orchestrator-Check"
#: The state of the job that an answer of the server is about.
H_JOB_STATUS: Final = "X-Job-Status"

#: Files that are smaller than this in sum (bytes) travel and are stored inside their message and
#: record instead of in files of their own. It saves the fsync of each file and directory.
INLINE_LIMIT: Final = 64 * 1024

#: So do so many of them at most: their names go into one message too, with 800 bytes each at the
#: worst, and that must stay below FRAME_LIMIT.
INLINE_FILES_LIMIT: Final = 10_000

#: No byte for this long (seconds) ends a transfer; there is no limit on its total time.
SILENCE_LIMIT: Final = 30.0

#: The largest message on the stream (bytes): files inside it, and their names.
FRAME_LIMIT: Final = 16 * 1024 * 1024

#: How often a client says on its stream that it is alive (seconds).
HEARTBEAT_INTERVAL: Final = 5.0

#: The last bytes of stderr that a record shows.
STDERR_TAIL: Final = 4096

#: The folder in a zip that holds what the system adds to a job's own files.
RESERVED_NAME: Final = ".orchestrator"

# --- the routes of a client

SUBMIT: Final = "/submit"
RETRIEVE: Final = "/retrieve"
RESULT: Final = "/result"
RETRIEVE_PARTIAL: Final = "/retrieve_partial"
KILL: Final = "/kill"
LOAD: Final = "/load"
HEALTH: Final = "/health"
LIVE: Final = "/live"
STREAM: Final = "/stream"


def service_name(text: str) -> str:
    """The one spelling of a service: case does not matter, '-' and '.' are the same as '_'."""
    return text.strip().lower().replace("-", "_").replace(".", "_")


def claim_check(server: str, job: str, attempt: str, service: str, payload: str = "") -> str:
    """The CRC-32 of whom and what a request is about, as its headers have it, and its path the
    payload: one that arrived damaged must not be taken for one about another job."""
    named = " ".join((server, job, attempt, service, payload))
    return f"{zlib.crc32(named.encode(errors='surrogateescape')):08x}"
