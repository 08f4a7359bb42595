"""The keys under which app.py puts the parts of the client, for the handlers to find."""

from aiohttp import web

from orchestrator_client.cleaner import Cleaner
from orchestrator_client.config import Config
from orchestrator_client.health import Health
from orchestrator_client.identity import Identity
from orchestrator_client.intake import Intake
from orchestrator_client.load import Load
from orchestrator_client.payloads import Payloads
from orchestrator_client.runner import Runner
from orchestrator_client.standing import Standing
from orchestrator_client.stopping import Stopping
from orchestrator_client.streams import Streams

CONFIG = web.AppKey("config", Config)
IDENTITY = web.AppKey("identity", Identity)
PAYLOADS = web.AppKey("payloads", Payloads)
RUNNER = web.AppKey("runner", Runner)
INTAKE = web.AppKey("intake", Intake)
CLEANER = web.AppKey("cleaner", Cleaner)
STREAMS = web.AppKey("streams", Streams)
STANDING = web.AppKey("standing", Standing)
STOPPING = web.AppKey("stopping", Stopping)
LOAD = web.AppKey("load", Load)
HEALTH = web.AppKey("health", Health)
