"""The keys under which app.py puts the parts of the server, for the handlers to find."""

from aiohttp import web

from orchestrator_server.clients.pool import Pool
from orchestrator_server.config import Config
from orchestrator_server.health import Health
from orchestrator_server.operating import Operator
from orchestrator_server.store.files import Files
from orchestrator_server.store.jobs import Jobs
from orchestrator_server.store.records import Records
from orchestrator_server.store.room import Room
from orchestrator_server.tasks.cleaner import Cleaner
from orchestrator_server.tasks.sender import Sender
from orchestrator_server.terminating import Terminator
from orchestrator_server.watchers import Watchers

CONFIG = web.AppKey("config", Config)
FILES = web.AppKey("files", Files)
JOBS = web.AppKey("jobs", Jobs)
ROOM = web.AppKey("room", Room)
RECORDS = web.AppKey("records", Records)
POOL = web.AppKey("pool", Pool)
WATCHERS = web.AppKey("watchers", Watchers)
SENDER = web.AppKey("sender", Sender)
TERMINATOR = web.AppKey("terminator", Terminator)
CLEANER = web.AppKey("cleaner", Cleaner)
OPERATOR = web.AppKey("operator", Operator)
HEALTH = web.AppKey("health", Health)
