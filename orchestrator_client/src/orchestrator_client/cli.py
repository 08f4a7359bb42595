"""The command orch-client."""

import sys

from orchestrator_client.app import create_app
from orchestrator_client.config import Config
from orchestrator_shared.errors import StartError
from orchestrator_shared.serving import parser, run

PURPOSE = "Runs the jobs that an orch-server hands to this machine."


def main() -> int:
    """Run the client until it is told to stop; gives back its exit code."""
    flags = parser("orch-client", PURPOSE).parse_args()
    try:
        config = Config.from_env(flags.host, flags.port)
    except StartError as error:
        sys.stderr.write(f"orch-client: {error}\n")
        return error.exit_code
    return run("orch-client", lambda: create_app(config), config)
