"""The command orch-server."""

import sys

from orchestrator_server.commands import add_commands
from orchestrator_server.config import Config
from orchestrator_shared.errors import StartError
from orchestrator_shared.serving import parser, run

PURPOSE = "Takes jobs from portals, queues them fairly, and hands them to clients that run them."


def main() -> int:
    """Run the server until it is told to stop, or carry out a command; gives back the exit code."""
    known = parser("orch-server", PURPOSE)
    add_commands(known)
    flags = known.parse_args()
    try:
        config = Config.from_env(flags.host, flags.port)
        if flags.command is not None:
            print(flags.command(config, flags))
            return 0
    except StartError as error:
        sys.stderr.write(f"orch-server: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    # A command is done sooner without it.
    from orchestrator_server.app import create_app

    return run("orch-server", lambda: create_app(config), config)
