"""The command orch-client."""

import sys

from orchestrator_client.config import Config
from orchestrator_shared.errors import StartError
from orchestrator_shared.probe import add_probe, probe
from orchestrator_shared.serving import parser, run

PURPOSE = "Runs the jobs that an orch-server hands to this machine."


def main() -> int:
    """Run the client until it is told to stop, or ask it how it is; gives back the exit code."""
    known = parser("orch-client", PURPOSE)
    add_probe(known.add_subparsers(title="commands", metavar="COMMAND"))
    flags = known.parse_args()
    try:
        config = Config.from_env(flags.host, flags.port)
        if "route" in flags:
            print(probe(config.host, config.port, config.client_token, flags.route))
            return 0
    except StartError as error:
        sys.stderr.write(f"orch-client: {error}\n")
        return error.exit_code
    # A probe comes every few seconds, and needs nothing of it.
    from orchestrator_client.app import create_app

    return run("orch-client", lambda: create_app(config), config)
