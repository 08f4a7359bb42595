"""The messages of the stream between server and client."""

import json
import random
import zlib
from typing import Any

import msgspec
import pytest

from orchestrator_shared.errors import NotUsable
from orchestrator_shared.frames import pack_frame, unpack_frame
from orchestrator_shared.messages import File, Message, Other, State, Submit
from orchestrator_shared.protocol import FRAME_LIMIT, INLINE_FILES_LIMIT, INLINE_LIMIT, service_name
from orchestrator_shared.status import PayloadStatus
from support.frames import plain, raw_frame

PAYLOAD: dict[str, Any] = {
    "id": 1_700_000_000,
    "input": {},
    "status": "Completed",
    "loc": "/data/work/1",
    "pid": 0,
    "killed": False,
    "job": 5,
    "attempt": 2,
    "exit_code": 0,
    "fault": None,
    "reason": "ended",
    "lost": False,
    "handed_back": False,
    "wall_s": 1.5,
    "cpu_s": 0.25,
    "max_rss": 1 << 40,
    "stderr_tail": "zwei\nZeilen ü\x00",
    "result": {"size": 500, "sha256": "ab" * 32},
}
FRAMES: dict[str, dict[str, Any]] = {
    "hello": {
        "protocol": 1,
        "version": "0.1.0",
        "instance": "a",
        "start": "b",
        "service": None,
        "slots": 4,
        "kill_grace": 10.0,
    },
    "heartbeat": {"others": 0, "stuck": 1, "state": "out", "why": "no disk", "cpu_load": 12.5},
    "state": {"seq": 9, "payload": PAYLOAD},
    "listed": {},
    "refused": {
        "job": 5,
        "attempt": 1,
        "transient": True,
        "disk": False,
        "damaged": False,
        "held": 7,
        "message": "stopping",
    },
    "submit": {
        "job": 5,
        "attempt": 1,
        "service": "example",
        "limit_s": 3600.0,
        "files": [
            {"name": 'ü "\n', "size": 3, "sha256": "a" * 64},
            {"name": "empty", "size": 0, "sha256": "b" * 64},
        ],
    },
    "acknowledge": {"job": 5, "attempt": 1},
    "list": {},
    "hand_back": {},
}
#: What a message may lack, as there is a value that goes without saying.
OPTIONAL = ("service of hello", "stuck", "state", "why", "damaged", "held", "limit_s")


def message(kind: str) -> Message:
    """The message of this type above."""
    made: Message = msgspec.convert({"type": kind, **FRAMES[kind]}, Message)
    return made


def without(header: dict[str, Any], key: str) -> dict[str, Any]:
    """The same without one field."""
    return {k: v for k, v in header.items() if k != key}


@pytest.mark.parametrize("body", [b"", b"\n", b"content\n\nwith lines\n", bytes(range(256))])
@pytest.mark.parametrize("kind", FRAMES)
def test_a_message_is_read_as_it_was_written(kind: str, body: bytes) -> None:
    """Its type, its fields and its bytes, whatever they are."""
    read, read_body = unpack_frame(pack_frame(message(kind), body))

    assert (read, read_body) == (message(kind), body)
    assert plain(read) == (kind, FRAMES[kind])


def test_a_state_is_one_of_those_that_there_are() -> None:
    """And no text that looks like one."""
    read, _ = unpack_frame(pack_frame(message("state")))

    assert isinstance(read, State)
    assert read.payload.status is PayloadStatus.COMPLETED


@pytest.mark.parametrize("kind", FRAMES)
def test_what_a_newer_version_adds_is_passed_over(kind: str) -> None:
    """A message with more fields is read as the one that is known."""
    more = {**FRAMES[kind], "added": {"deep": [1, 2]}}
    if kind == "state":
        more["payload"] = {**PAYLOAD, "added": 1, "result": {**PAYLOAD["result"], "added": 1}}

    assert unpack_frame(raw_frame(kind, more))[0] == message(kind)


@pytest.mark.parametrize("kind", ["novelty", "Hello"])
def test_a_kind_that_a_newer_version_adds_is_named(kind: str) -> None:
    """It can be passed over; so it is no error."""
    assert unpack_frame(raw_frame(kind, {"protocol": 1}, b"body")) == (Other(kind), b"body")


@pytest.mark.parametrize(
    ("kind", "field"),
    [
        (kind, field)
        for kind, header in FRAMES.items()
        for field in header
        if field not in OPTIONAL and f"{field} of {kind}" not in OPTIONAL
    ],
)
def test_a_message_without_one_of_its_fields_is_refused(kind: str, field: str) -> None:
    """The error names it."""
    with pytest.raises(NotUsable, match=field):
        unpack_frame(raw_frame(kind, without(FRAMES[kind], field)))


REQUIRED = ["id", "status", "loc", "pid", "killed"]


@pytest.mark.parametrize("field", REQUIRED)
def test_a_payload_without_what_it_needs_is_refused(field: str) -> None:
    """The error names it."""
    with pytest.raises(NotUsable, match=field):
        unpack_frame(raw_frame("state", {"seq": 1, "payload": without(PAYLOAD, field)}))


@pytest.mark.parametrize("field", [name for name in PAYLOAD if name not in REQUIRED])
def test_a_payload_may_lack_the_rest(field: str) -> None:
    """It is not known then."""
    read, _ = unpack_frame(raw_frame("state", {"seq": 1, "payload": without(PAYLOAD, field)}))

    assert isinstance(read, State)
    assert not getattr(read.payload, field)


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("heartbeat", {"others": "1"}),
        ("heartbeat", {"others": 1.5}),
        ("heartbeat", {"cpu_load": None}),
        ("heartbeat", {"type": "listed"}),
        ("acknowledge", {"job": None}),
        ("acknowledge", {"job": "5"}),
        ("state", {"payload": None}),
        ("state", {"payload": {**PAYLOAD, "status": "Queued"}}),
        ("state", {"payload": {**PAYLOAD, "status": None}}),
        ("state", {"payload": {**PAYLOAD, "exit_code": "0"}}),
        ("state", {"payload": {**PAYLOAD, "result": {"size": 1, "sha256": "ab"}}}),
        ("state", {"payload": {**PAYLOAD, "wall_s": float("nan")}}),
        ("heartbeat", {"state": "lost"}),
        ("refused", {"held": "7"}),
        ("submit", {"limit_s": "an hour"}),
        ("submit", {"files": [{"name": "a", "size": -1, "sha256": "a" * 64}]}),
        ("submit", {"files": [{"name": "a", "size": 1, "sha256": "a" * 63}]}),
        ("submit", {"files": [{"name": "a"}]}),
        ("submit", {"files": {"name": "a", "size": 1}}),
        ("submit", {"files": ["a"]}),
        ("submit", {"service": 5}),
    ],
)
def test_a_message_with_a_field_of_another_kind_is_refused(
    kind: str, change: dict[str, Any]
) -> None:
    """Nothing is guessed."""
    frame = raw_frame(kind, {**FRAMES[kind], **change})
    if "type" in change:
        assert plain(unpack_frame(frame)[0])[0] == "listed"
    else:
        with pytest.raises(NotUsable):
            unpack_frame(frame)


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\n",
        b"garbage",
        b"\xff\xfe",
        b"{",
        b"5",
        b"null",
        b'"hello"',
        b"[]",
        b'["type"]',
        b"{}",
        b'{"type": 5}',
        b'{"type": null}',
        b'{"type": []}',
        b"[" * 100_000,
        b'{"type":' + b'{"a":' * 100_000,
        b'{"type": "acknowledge", "attempt": 1, "job": ' + b"9" * 5000 + b"}",
    ],
    ids=lambda frame: repr(frame[:24]),
)
def test_what_is_no_message_is_refused(frame: bytes) -> None:
    """As one kind of error, and in one line."""
    with pytest.raises(NotUsable, match="does not fit") as refused:
        unpack_frame(zlib.crc32(frame).to_bytes(4) + frame)
    assert "\n" not in str(refused.value)[:200]


def test_bytes_at_random_are_refused() -> None:
    """With no other error than that, although their check fits."""
    chance = random.Random(3)
    whole = pack_frame(message("state"), b"body")[4:]
    for _ in range(500):
        damaged = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        try:
            read, _ = unpack_frame(zlib.crc32(damaged).to_bytes(4) + damaged)
        except NotUsable:
            continue
        assert plain(read)[0] in FRAMES


@pytest.mark.parametrize("cut", [0, 1, 4, 20], ids="{} bytes".format)
def test_a_message_that_arrived_short_is_refused(cut: int) -> None:
    """Whatever is left of it."""
    with pytest.raises(NotUsable, match="damaged"):
        unpack_frame(pack_frame(message("acknowledge"))[:cut])


def test_one_wrong_bit_anywhere_is_noticed() -> None:
    """The number of a job would become that of another, whose payload is dropped."""
    whole = pack_frame(message("acknowledge"), b"body")
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(NotUsable, match="damaged"):
            unpack_frame(bytes(damaged))


def test_the_largest_small_job_fits_into_a_message() -> None:
    """As many files as may travel in one, with the longest names there are."""
    name = "\U0001f9ec" * 60 + "{:05}"
    files = tuple(
        File(name=name.format(n), size=INLINE_LIMIT, sha256="a" * 64)
        for n in range(INLINE_FILES_LIMIT)
    )
    submit = Submit(job=2**63 - 1, attempt=1, service="example", files=files)

    frame = pack_frame(submit, bytes(INLINE_LIMIT))

    assert len(frame) < FRAME_LIMIT


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Haddock", "haddock"),
        (" my-service.v2 ", "my_service_v2"),
        ("MY_SERVICE_V2", "my_service_v2"),
        ("", ""),
    ],
)
def test_services_compare_without_case_hyphens_and_dots(text: str, name: str) -> None:
    """They have one spelling."""
    assert service_name(text) == name


def test_a_header_is_plain_json() -> None:
    """One line of it, that any other program could read."""
    line, _, body = pack_frame(message("state"), b"body")[4:].partition(b"\n")

    assert json.loads(line) == {"type": "state", **FRAMES["state"]}
    assert body == b"body"
