"""What can become of a submit that was not simply accepted."""

from orchestrator_shared.errors import OrchestratorError


class SubmitError(OrchestratorError):
    """The job was not taken."""


class NotReceived(SubmitError):
    """The client surely has not received the job: {problem}"""


class OutcomeUnknown(SubmitError):
    """Nobody knows whether the client has received the job: {problem}"""


class RefusedForNow(SubmitError):
    """The client takes no job just now: {message}"""

    def __init__(self, message: str, *, disk: bool = False, damaged: bool = False) -> None:
        super().__init__(message=message)
        #: Whether the client lacks room on its disk.
        self.disk = disk
        #: Whether a file did not arrive as this server has it in its records.
        self.damaged = damaged


class Outdated(SubmitError):
    """The client has attempt {held} of the job, which is a later one"""

    def __init__(self, held: int) -> None:
        super().__init__(held=held)
        self.held = held


class Refused(SubmitError):
    """The client refused the job: {message}"""


class PayloadGone(OrchestratorError):
    """The client no longer has payload {payload}."""

    #: Whether that is no fault of the job, so that no attempt is used.
    spares = False


class Damaged(OrchestratorError):
    """The result of payload {payload} arrived damaged."""
