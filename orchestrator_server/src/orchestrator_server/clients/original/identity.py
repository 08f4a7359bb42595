"""By what a client of the original is known: it has no id of its own, and does not tell a start."""

import uuid


def instance_of(base: str) -> str:
    """Its instance: where it answers."""
    return uuid.uuid5(uuid.NAMESPACE_URL, base).hex


def start_of(resets: int) -> str:
    """Its start: one for each time that its ids began again."""
    return f"ids {resets}"
