"""`python -m orchestrator_server` is the command orch-server."""

import sys

from orchestrator_server.cli import main

sys.exit(main())
