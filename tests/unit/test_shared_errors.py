"""The error tree: a docstring is a message."""

import string
from inspect import cleandoc

import pytest

import orchestrator_client.app
import orchestrator_server.app
from orchestrator_shared import errors
from orchestrator_shared.errors import NotFound, OrchestratorError

#: Their errors count too, once they are imported.
PROGRAMS = (orchestrator_client.app, orchestrator_server.app)


def _tree(kind: type[OrchestratorError]) -> list[type[OrchestratorError]]:
    return [kind, *(found for below in kind.__subclasses__() for found in _tree(below))]


KINDS = sorted(
    {kind for kind in _tree(OrchestratorError) if kind.__module__.startswith("orchestrator_")},
    key=lambda kind: (kind.__module__, kind.__name__),
)
#: Those that take the fields of their message, and nothing else.
PLAIN = [kind for kind in KINDS if kind.__init__ is OrchestratorError.__init__]


def _fields(kind: type[OrchestratorError]) -> list[str]:
    parsed = string.Formatter().parse(cleandoc(kind.__doc__ or ""))
    return [name for _, name, _, _ in parsed if name]


@pytest.mark.parametrize("kind", PLAIN, ids=lambda kind: kind.__name__)
def test_a_message_is_one_line_with_its_fields_filled_in(kind: type[OrchestratorError]) -> None:
    """Every error, of the server and the client too; a field may itself have braces."""
    values = {name: f"<{{{name}}}>" for name in _fields(kind)}

    error = kind(**values)

    expected = " ".join(cleandoc(kind.__doc__ or "").split())
    for name, value in values.items():
        expected = expected.replace(f"{{{name}}}", value)
    assert str(error) == expected != ""
    assert error.details == values


def test_what_is_missing_is_named() -> None:
    """What it is, and its number."""
    assert str(NotFound("job", 7)) == "There is no job 7."


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_has_a_docstring_of_its_own(kind: type[OrchestratorError]) -> None:
    """One that is inherited would be the message of another."""
    assert "__doc__" in vars(kind)
    assert vars(kind)["__doc__"]


def test_a_missing_field_is_noticed_where_it_is_raised() -> None:
    """And does not reach a user as braces."""
    with pytest.raises(KeyError, match="problem"):
        errors.BadUpload()


def test_an_error_can_say_what_it_is_about() -> None:
    """The job and its state, for the answer; without them it is about none."""
    error = errors.Conflict(problem="it has ended")
    assert (error.subject_id, error.subject_status) == (0, None)

    assert error.about(5, "Killed") is error
    assert (error.subject_id, error.subject_status) == (5, "Killed")
    assert (errors.Conflict(problem="").subject_id, NotFound("job", 9).subject_id) == (0, 9)


def test_a_message_over_several_lines_is_told_in_one() -> None:
    """As TooLarge has it."""
    assert str(errors.TooLarge(limit=5)) == (
        "The files are larger than 5 bytes in sum, which is the limit here (MAX_UPLOAD_SIZE). "
        "Nothing of the upload was kept."
    )
