"""The messages between server and client: what each of them says.

msgspec reads and checks them while it decodes the JSON: what marshmallow takes half a millisecond
for, it does in microseconds. What a newer version adds to a message is passed over.
"""

from typing import Annotated, Any, Final, Literal, get_args

import msgspec
from msgspec import Meta, Struct

from orchestrator_shared.status import PayloadStatus

Sha256 = Annotated[str, Meta(min_length=64, max_length=64)]
Size = Annotated[int, Meta(ge=0)]


class File(Struct, frozen=True, kw_only=True):
    """One file of a job: its name, how many bytes it has, and their SHA-256 in hexadecimal."""

    name: str
    size: Size
    sha256: Sha256


class PackedResult(Struct, frozen=True, kw_only=True):
    """The packed result of a payload: bytes, and their SHA-256 in hexadecimal."""

    size: Size
    sha256: Sha256


class PayloadState(Struct, frozen=True, kw_only=True):
    """A payload in full: an answer of a client, and what its stream tells of each change.

    Times are seconds, `max_rss` bytes. What may be null is not known, or not so yet.
    """

    id: int
    #: Always empty: an original client had the files here.
    input: dict[str, Any] = msgspec.field(default_factory=dict)
    status: PayloadStatus
    loc: str
    #: The process of run.sh; 0: none.
    pid: int
    killed: bool
    #: 0, and no attempt, where its server does not say who it is.
    job: int = 0
    attempt: int = 0
    exit_code: int | None = None
    fault: str | None = None
    reason: str | None = None
    lost: bool = False
    #: Given up as the client stops or is drained.
    handed_back: bool = False
    wall_s: float | None = None
    cpu_s: float | None = None
    max_rss: int | None = None
    stderr_tail: str | None = None
    result: PackedResult | None = None


class Hello(Struct, frozen=True, kw_only=True, tag_field="type", tag="hello"):
    """The first message of a client on its stream: who it is."""

    protocol: int
    version: str
    instance: str
    start: str
    #: The only service whose jobs it takes; None: any.
    service: str | None = None
    slots: int
    kill_grace: float


class Heartbeat(Struct, frozen=True, kw_only=True, tag_field="type", tag="heartbeat"):
    """Every few seconds, and when it changes: how busy the client is for others."""

    #: Slots taken by payloads that are not this server's, and by stuck ones.
    others: int
    #: Slots whose processes are still there after SIGKILL.
    stuck: int = 0
    #: leaving: it stops; out: its CHECK fails; it takes no work.
    state: Literal["up", "leaving", "out"] = "up"
    why: str = ""
    #: 0 to 100.
    cpu_load: float


class State(Struct, frozen=True, kw_only=True, tag_field="type", tag="state"):
    """A payload as it is now. Its result follows in the same frame where it is small."""

    seq: int
    payload: PayloadState


class Listed(Struct, frozen=True, tag_field="type", tag="listed"):
    """The state of every payload of this server has been sent once."""


class Refusal(Struct, frozen=True, kw_only=True, tag_field="type", tag="refused"):
    """The answer to a submit that the client does not take."""

    job: int
    attempt: int
    transient: bool
    disk: bool
    #: A file did not arrive as it was sent.
    damaged: bool = False
    #: The higher attempt of the job that this client has.
    held: int | None = None
    message: str


class Submit(Struct, frozen=True, kw_only=True, tag_field="type", tag="submit"):
    """A small job on the stream; the bytes of its files follow in the same frame, in order."""

    job: int
    attempt: int
    service: str
    #: How long the attempt may run (seconds); None: as long as it likes.
    limit_s: float | None = None
    files: tuple[File, ...]


class Acknowledge(Struct, frozen=True, kw_only=True, tag_field="type", tag="acknowledge"):
    """The end of an attempt and its files have arrived, or nobody wants them: drop them."""

    job: int
    attempt: int


class List(Struct, frozen=True, tag_field="type", tag="list"):
    """The server asks for the state of every payload again; `listed` ends them."""


class HandBack(Struct, frozen=True, tag_field="type", tag="hand_back"):
    """The server drains the client: what is Prepared is handed back, what runs goes on."""


class Other(Struct, frozen=True):
    """A message of a kind that a newer version has, and that may be passed over."""

    type: str


Message = Hello | Heartbeat | State | Listed | Refusal | Submit | Acknowledge | List | HandBack

encode_message = msgspec.json.Encoder().encode
decode_message = msgspec.json.Decoder(Message).decode
decode_other = msgspec.json.Decoder(Other).decode
#: The kinds of messages that are known here.
KINDS: Final = frozenset(str(kind.__struct_config__.tag) for kind in get_args(Message))
decode_payload = msgspec.json.Decoder(PayloadState).decode
decode_files = msgspec.json.Decoder(tuple[File, ...]).decode
