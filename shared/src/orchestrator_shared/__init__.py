"""What the server and the client of job-orchestrator share: states, messages and stream tools."""

__version__ = "0.1.0"
