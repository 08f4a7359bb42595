"""orch-client: runs the payloads that servers hand to it."""
