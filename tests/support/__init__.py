"""What the tests share: a portal, a system in one process, and the real programs."""
