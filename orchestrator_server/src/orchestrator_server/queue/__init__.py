"""2, queue: who may go now, and why the others wait."""
