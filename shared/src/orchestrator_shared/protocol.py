"""The wire between server and client: routes, headers, and the schema of every message."""

import zlib
from typing import Any, Final

from marshmallow import EXCLUDE, Schema, fields, validate

from orchestrator_shared.status import PayloadStatus

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


class Message(Schema):
    """A message of our own: what a newer version adds to it is passed over."""

    class Meta:
        unknown = EXCLUDE


# --- between server and client


class FileSchema(Message):
    """One file of a job: its name, how many bytes it has, and their SHA-256 in hexadecimal."""

    name = fields.String(required=True)
    size = fields.Integer(required=True, strict=True, validate=validate.Range(min=0))
    sha256 = fields.String(required=True, validate=validate.Length(equal=64))


class ResultSchema(Message):
    """The packed result of a payload."""

    size = fields.Integer(required=True, strict=True)
    sha256 = fields.String(required=True, validate=validate.Length(equal=64))


class PayloadSchema(Message):
    """A payload, in full: an answer of a client, and what its stream tells of each change."""

    id = fields.Integer(required=True, strict=True)
    input = fields.Dict(dump_default=dict, metadata={"description": "always empty"})
    status = fields.Enum(PayloadStatus, by_value=True, required=True)
    loc = fields.String(required=True)
    pid = fields.Integer(required=True, strict=True, metadata={"description": "0: no process"})
    killed = fields.Boolean(required=True)
    job = fields.Integer(load_default=None, allow_none=True, strict=True)
    attempt = fields.Integer(load_default=None, allow_none=True, strict=True)
    exit_code = fields.Integer(load_default=None, allow_none=True, strict=True)
    fault = fields.String(load_default=None, allow_none=True)
    reason = fields.String(load_default=None, allow_none=True)
    lost = fields.Boolean(load_default=False)
    handed_back = fields.Boolean(
        load_default=False,
        metadata={"description": "given up as the client stops or is drained"},
    )
    wall_s = fields.Float(load_default=None, allow_none=True)
    cpu_s = fields.Float(load_default=None, allow_none=True)
    max_rss = fields.Integer(load_default=None, allow_none=True)
    stderr_tail = fields.String(load_default=None, allow_none=True)
    result = fields.Nested(ResultSchema, load_default=None, allow_none=True)


class HelloSchema(Message):
    """The first message of a client on its stream: who it is."""

    type = fields.Constant("hello")
    protocol = fields.Integer(required=True, strict=True)
    version = fields.String(required=True)
    instance = fields.String(required=True)
    start = fields.String(required=True)
    service = fields.String(
        load_default=None,
        allow_none=True,
        metadata={"description": "the only service whose jobs it takes; null: any"},
    )
    slots = fields.Integer(required=True, strict=True)
    kill_grace = fields.Float(required=True)


class HeartbeatSchema(Message):
    """Every few seconds, and when it changes: how busy the client is for others."""

    type = fields.Constant("heartbeat")
    others = fields.Integer(
        required=True,
        strict=True,
        metadata={
            "description": "slots taken by payloads that are not this server's, and by stuck ones"
        },
    )
    stuck = fields.Integer(
        load_default=0,
        strict=True,
        metadata={"description": "slots whose processes are still there after SIGKILL"},
    )
    state = fields.String(
        load_default="up",
        validate=validate.OneOf(["up", "leaving", "out"]),
        metadata={"description": "leaving: it stops; out: its CHECK fails; it takes no work"},
    )
    why = fields.String(load_default="")
    cpu_load = fields.Float(required=True, metadata={"description": "0 to 100"})


class StateSchema(Message):
    """A payload as it is now. Its result follows in the same frame where it is small."""

    type = fields.Constant("state")
    seq = fields.Integer(required=True, strict=True)
    payload = fields.Nested(PayloadSchema, required=True)


class ListedSchema(Message):
    """The state of every payload of this server has been sent once."""

    type = fields.Constant("listed")


class RefusedSchema(Message):
    """The answer to a submit that the client does not take."""

    type = fields.Constant("refused")
    job = fields.Integer(required=True, strict=True)
    attempt = fields.Integer(required=True, strict=True)
    transient = fields.Boolean(required=True)
    disk = fields.Boolean(required=True)
    damaged = fields.Boolean(
        load_default=False,
        metadata={"description": "a file did not arrive as it was sent"},
    )
    held = fields.Integer(
        load_default=None,
        allow_none=True,
        strict=True,
        metadata={"description": "the higher attempt of the job that this client has"},
    )
    message = fields.String(required=True)


class SubmitSchema(Message):
    """A small job on the stream; the bytes of its files follow in the same frame, in order."""

    type = fields.Constant("submit")
    job = fields.Integer(required=True, strict=True)
    attempt = fields.Integer(required=True, strict=True)
    service = fields.String(required=True)
    limit_s = fields.Float(
        load_default=None,
        allow_none=True,
        metadata={"description": "how long the attempt may run; null: as long as it likes"},
    )
    files = fields.List(fields.Nested(FileSchema), required=True)


class AcknowledgeSchema(Message):
    """The end of an attempt and its files have arrived, or nobody wants them: drop them."""

    type = fields.Constant("acknowledge")
    job = fields.Integer(required=True, strict=True)
    attempt = fields.Integer(required=True, strict=True)


class ListSchema(Message):
    """The server asks for the state of every payload again; `listed` ends them."""

    type = fields.Constant("list")


class HandBackSchema(Message):
    """The server drains the client: what is Prepared is handed back, what runs goes on."""

    type = fields.Constant("hand_back")


class AnswerSchema(Message):
    """What every error, and every answer without content of its own, looks like."""

    id = fields.Integer(required=True, metadata={"description": "the job, or 0"})
    status = fields.String(required=True, metadata={"description": "its state, or Unknown"})
    message = fields.String(required=True, metadata={"description": "what is so, and what to do"})


class ClientHealthSchema(Message):
    """`GET /health` of a client."""

    status = fields.String(required=True)
    problems = fields.List(fields.String())
    version = fields.String(required=True)
    protocol = fields.Integer(required=True)
    instance = fields.String(required=True)
    service = fields.String(allow_none=True)
    slots = fields.Integer(required=True)
    slots_in_use = fields.Integer(required=True)


def frame_schema(kind: str) -> Schema:
    """The schema of a message on the stream, by its `type`.

    Raises:
        KeyError: there is no such message.
    """
    return _FRAMES[kind]


_FRAMES: dict[str, Schema] = {
    "hello": HelloSchema(),
    "heartbeat": HeartbeatSchema(),
    "state": StateSchema(),
    "listed": ListedSchema(),
    "refused": RefusedSchema(),
    "submit": SubmitSchema(),
    "acknowledge": AcknowledgeSchema(),
    "list": ListSchema(),
    "hand_back": HandBackSchema(),
}


def load(schema: Schema, data: Any) -> dict[str, Any]:
    """Check a message against its schema and give it back as plain values.

    Raises:
        marshmallow.ValidationError: it does not fit.
    """
    loaded: dict[str, Any] = schema.load(data)
    return loaded
