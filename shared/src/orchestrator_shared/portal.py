"""What the server answers portals and operators: the schema of every body."""

from marshmallow import Schema, fields, validate

from orchestrator_shared.status import Status

_status = validate.OneOf([status.value for status in Status])


class AnswerSchema(Schema):
    """What every error, and every answer without content of its own, looks like."""

    id = fields.Integer(required=True, metadata={"description": "the job, or 0"})
    status = fields.String(required=True, metadata={"description": "its state, or Unknown"})
    message = fields.String(required=True, metadata={"description": "what is so, and what to do"})


class FileSchema(Schema):
    """One file of a job: its name, how many bytes it has, and their SHA-256 in hexadecimal."""

    name = fields.String(required=True)
    size = fields.Integer(required=True)
    sha256 = fields.String(required=True)


class UploadedSchema(Schema):
    """The answer to an upload."""

    id = fields.Integer(required=True)
    user_id = fields.Integer(required=True)
    service = fields.String(required=True)
    status = fields.String(required=True, validate=_status)
    loc = fields.String(required=True)
    dest_id = fields.String(required=True)
    message = fields.String(required=True)


class HistorySchema(Schema):
    """One change of a job's state, in its record."""

    seq = fields.Integer(required=True)
    at = fields.String(required=True, metadata={"description": "RFC 3339, UTC"})
    status = fields.String(required=True, validate=_status)
    attempt = fields.Integer(required=True)
    client = fields.String(allow_none=True)
    reason = fields.String(allow_none=True)


class WaitingSchema(Schema):
    """Why a Queued job waits."""

    code = fields.String(
        required=True,
        validate=validate.OneOf(
            ["user_quota", "service_quota", "no_client", "no_slot", "backoff", "disk"]
        ),
    )
    ahead = fields.Integer(required=True)
    users = fields.Integer(required=True)
    limit = fields.Integer(required=True)
    used = fields.Integer(required=True)


class JobSchema(UploadedSchema):
    """The record of a job."""

    ref = fields.String(allow_none=True)
    version = fields.Integer(required=True)
    created_at = fields.String(required=True)
    started_at = fields.String(allow_none=True)
    ended_at = fields.String(allow_none=True)
    expires_at = fields.String(allow_none=True)
    attempt = fields.Integer(required=True)
    client = fields.String(allow_none=True)
    exit_code = fields.Integer(allow_none=True)
    fault = fields.String(allow_none=True)
    reason = fields.String(allow_none=True)
    stderr_tail = fields.String(allow_none=True)
    wall_s = fields.Float(allow_none=True)
    cpu_s = fields.Float(allow_none=True)
    max_rss = fields.Integer(allow_none=True, metadata={"description": "bytes"})
    input_bytes = fields.Integer(required=True)
    result_bytes = fields.Integer(allow_none=True)
    kill_requested = fields.Boolean(required=True)
    history = fields.List(fields.Nested(HistorySchema), required=True)
    waiting = fields.Nested(WaitingSchema, allow_none=True)


class JobWithInputsSchema(JobSchema):
    """The record of a job, with its uploaded files where they were asked for."""

    inputs = fields.List(
        fields.Nested(FileSchema),
        allow_none=True,
        metadata={"description": "with ?inputs=true; null once they are removed"},
    )


class JobsSchema(Schema):
    """A page of jobs, newest first."""

    jobs = fields.List(fields.Nested(JobSchema), required=True)
    next = fields.Integer(allow_none=True, metadata={"description": "`after` of the next page"})


class EventSchema(Schema):
    """One change of one job."""

    seq = fields.Integer(required=True)
    at = fields.String(required=True)
    job = fields.Integer(required=True)
    ref = fields.String(allow_none=True)
    user_id = fields.Integer(required=True)
    service = fields.String(required=True)
    from_ = fields.String(data_key="from", attribute="from", allow_none=True)
    to = fields.String(required=True)
    attempt = fields.Integer(required=True)
    client = fields.String(allow_none=True)
    fault = fields.String(allow_none=True)
    reason = fields.String(allow_none=True)


class EventsSchema(Schema):
    """Changes in order."""

    events = fields.List(fields.Nested(EventSchema), required=True)
    next = fields.Integer(required=True, metadata={"description": "`after` of the next call"})


class PongSchema(Schema):
    """The answer of the root."""

    message = fields.String(required=True)


class LiveSchema(Schema):
    """`GET /live`."""

    status = fields.String(required=True)


class ServerHealthSchema(Schema):
    """`GET /health` of the server."""

    status = fields.String(required=True)
    version = fields.String(required=True)
    problems = fields.List(fields.String(), required=True)
    clients_up = fields.Integer(required=True)
    clients_out = fields.Dict(
        keys=fields.String(),
        values=fields.String(),
        required=True,
        metadata={"description": "why clients that answer take no work"},
    )
    clients = fields.Integer(required=True)
    paused = fields.Boolean(
        required=True, metadata={"description": "restored, and not resumed yet"}
    )
    tasks = fields.Dict(keys=fields.String(), required=True)


class ClientSchema(Schema):
    """How a client stands."""

    address = fields.String(required=True)
    instance = fields.String(allow_none=True, metadata={"description": "null: never met"})
    service = fields.String(
        allow_none=True, metadata={"description": "the only one that it runs jobs of; null: any"}
    )
    version = fields.String(allow_none=True)
    slots = fields.Integer(required=True)
    slots_in_use = fields.Integer(required=True)
    stuck = fields.Integer(
        required=True, metadata={"description": "slots whose processes outlive SIGKILL"}
    )
    unknown_payloads = fields.Integer(
        required=True, metadata={"description": "of jobs that the server does not know"}
    )
    load_ = fields.Float(
        data_key="load",
        attribute="load",
        allow_none=True,
        metadata={"description": "CPU load, 0 to 100"},
    )
    last_seen = fields.String(allow_none=True, metadata={"description": "RFC 3339, UTC"})
    state = fields.String(
        required=True,
        validate=validate.OneOf(["up", "lost", "gone", "leaving", "draining", "out"]),
    )
    why = fields.String(required=True)


class ClientsSchema(Schema):
    """`GET /clients`."""

    clients = fields.List(fields.Nested(ClientSchema), required=True)


class ServiceSchema(Schema):
    """How a service stands. Times are seconds."""

    service = fields.String(required=True)
    jobs = fields.Dict(keys=fields.String(validate=_status), values=fields.Integer(), required=True)
    oldest_queued = fields.String(allow_none=True, metadata={"description": "RFC 3339, UTC"})
    oldest_queued_s = fields.Float(allow_none=True, metadata={"description": "its age"})
    clients = fields.Integer(required=True)
    clients_up = fields.Integer(required=True)
    slots = fields.Integer(required=True, metadata={"description": "of clients that take jobs"})
    runs_per_user = fields.Integer(required=True)
    max_runs = fields.Integer(required=True)
    max_attempts = fields.Integer(allow_none=True)
    max_runtime = fields.Float(allow_none=True)
    max_age = fields.Float(allow_none=True)


class ServicesSchema(Schema):
    """`GET /services`."""

    services = fields.List(fields.Nested(ServiceSchema), required=True)
