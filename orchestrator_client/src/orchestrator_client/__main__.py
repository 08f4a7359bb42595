"""`python -m orchestrator_client` is the command orch-client."""

import sys

from orchestrator_client.cli import main

sys.exit(main())
