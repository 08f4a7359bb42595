"""The command orch-server."""

import sys

from orchestrator_server.app import create_app
from orchestrator_server.config import Config
from orchestrator_shared.errors import StartError
from orchestrator_shared.serving import parser, run

PURPOSE = "Takes jobs from portals, queues them fairly, and hands them to clients that run them."


def main() -> int:
    """Run the server until it is told to stop; gives back its exit code."""
    flags = parser("orch-server", PURPOSE).parse_args()
    try:
        config = Config.from_env(flags.host, flags.port)
    except StartError as error:
        sys.stderr.write(f"orch-server: {error}\n")
        return error.exit_code
    return run("orch-server", lambda: create_app(config), config)
