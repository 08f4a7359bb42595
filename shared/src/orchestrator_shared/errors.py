"""The error tree. The docstring of a class is its message; its fields are filled in when raised.

The classes right below OrchestratorError say what kind of trouble it is; the middleware in
answers.py turns each kind into an HTTP answer. Transient ones can be tried again as they are.
"""

from inspect import cleandoc
from typing import Self


class OrchestratorError(Exception):
    """Something went wrong inside; the log of the program has more."""

    #: The job or payload that the error is about, and its state; 0 and None where there is none.
    subject_id = 0
    subject_status: str | None = None

    def __init__(self, **details: object) -> None:
        self.details = details
        super().__init__(" ".join(cleandoc(self.__doc__ or "").split()).format(**details))

    def about(self, id: int, status: str) -> Self:
        """The same error, with the job or payload that it is about."""
        self.subject_id = id
        self.subject_status = status
        return self


class StartError(OrchestratorError):
    """The program cannot start: {problem}"""

    #: What the process ends with.
    exit_code = 2


class SettingError(StartError):
    """{setting}: {problem}"""


# --- what the caller did: permanent


class NotUsable(OrchestratorError):
    """The request cannot be used: {problem}."""


class BadUpload(NotUsable):
    """The upload cannot be used: {problem}. Nothing of it was kept."""


class BadParameter(NotUsable):
    """The parameter '{name}' cannot be used: {problem}."""


class TooLarge(OrchestratorError):
    """The files are larger than {limit} bytes in sum, which is the limit here (MAX_UPLOAD_SIZE).
    Nothing of the upload was kept."""


class NotFound(OrchestratorError):
    """There is no {what} {id}."""

    def __init__(self, what: str, id: int) -> None:
        super().__init__(what=what, id=id)
        self.subject_id = id


class Unauthorized(OrchestratorError):
    """This client answers only who has its token: CLIENT_TOKEN_FILE has to name the same secret at
    the server and here."""


class OtherProtocol(OrchestratorError):
    """The request speaks protocol {theirs}, and this client protocol {own}. Nothing was done;
    install versions that are neighbours."""


class Conflict(OrchestratorError):
    """The request does not fit the present state: {problem}."""


class AlreadyEnded(Conflict):
    """Job {job} had ended before as {ended_as}, and that stands."""


class KeyConflict(Conflict):
    """The Idempotency-Key was used before, for job {job}, with other files or another service.
    Use a new key for a new job."""


class OlderAttempt(Conflict):
    """Attempt {attempt} of job {job} is older than attempt {held}, which this client has."""


class OtherService(Conflict):
    """This client runs jobs of the service '{own}' alone, not of '{service}' (SERVICE)."""


class Misdirected(OrchestratorError):
    """This is client {instance}, and the request is meant for client {wanted}. Nothing was done."""


class DamagedOnTheWay(OrchestratorError):
    """{what} did not arrive as it was sent. Nothing was kept; send it again."""


# --- what is in the way just now: transient


class Transient(OrchestratorError):
    """It cannot be done just now: {problem}. Try again."""


class NoSpace(Transient):
    """There is not enough room on the disk: {problem}. Nothing was kept; try again once there is
    room."""


class Unavailable(Transient):
    """Not available just now: {problem}. Try again in a moment."""


class Silent(Transient):
    """No byte came for {seconds} seconds; the transfer was given up and nothing of it was kept."""


class ClientUnreachable(Transient):
    """The client at {client} cannot be reached ({problem}). The job itself is not touched by that;
    try again."""
