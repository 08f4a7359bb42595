"""The one place where the parts of the server are put together."""

import asyncio
import logging
import warnings

from aiohttp import web
from aiohttp.web_exceptions import NotAppKeyWarning
from aiohttp_apispec import setup_aiohttp_apispec

from orchestrator_server import keys
from orchestrator_server.api import clients, download, health, jobs, terminate, upload
from orchestrator_server.api.original import answer_v2
from orchestrator_server.clients.directory import Directory
from orchestrator_server.clients.original.finding import Originals
from orchestrator_server.clients.original.identity import Here
from orchestrator_server.clients.pool import Pool
from orchestrator_server.config import ApiCompat, Config
from orchestrator_server.control import ControlSocket, socket_path
from orchestrator_server.health import Health
from orchestrator_server.identity import take_identity
from orchestrator_server.operating import Operator
from orchestrator_server.signals import Signals
from orchestrator_server.store.database import Database
from orchestrator_server.store.files import Files
from orchestrator_server.store.jobs import Jobs
from orchestrator_server.store.records import Records
from orchestrator_server.store.room import Room
from orchestrator_server.tasks.cleaner import Cleaner
from orchestrator_server.tasks.getter import Getter
from orchestrator_server.tasks.losses import Losses, Patience
from orchestrator_server.tasks.sender import Sender
from orchestrator_server.terminating import Terminator
from orchestrator_server.watchers import Watchers
from orchestrator_shared import __version__
from orchestrator_shared.answers import errors_become_answers
from orchestrator_shared.errors import SettingError

log = logging.getLogger(__name__)


def create_app(config: Config) -> web.Application:
    """The server, ready to be served.

    Raises:
        StartError: a path is in use or cannot be written, or the database cannot be used.
    """
    identity = take_identity(config)
    try:
        files = Files(config.data_path)
    except SettingError:
        identity.release()
        raise
    room = Room(config)
    watchers = Watchers()
    signals = Signals(config.services, watchers)
    database = Database(config.db_path, signals.on_commit)
    directory = Directory(database)
    store, records = Jobs(database), Records(database)
    originals = Originals(
        Here(
            directory,
            identity.id,
            files.tmp,
            room.check,
            config.getter_interval,
            config.client_lost_after,
        ),
        records,
        {name: service.max_runtime for name, service in config.services.items()},
    )
    pool = Pool(
        config.services,
        identity.id,
        config.client_lost_after,
        directory,
        signals,
        originals,
        config.client_token,
    )
    terminator = Terminator(store, records, pool, watchers)
    sender = Sender(database, store, records, files, pool, config.sender_interval)
    patience = Patience(
        config.client_lost_after, config.client_gone_after, config.client_give_up_after
    )
    losses = Losses(
        store,
        records,
        pool,
        directory,
        {name: service.max_attempts for name, service in config.services.items()},
        patience,
        sender.wake,
    )
    getter = Getter(
        store,
        records,
        files,
        losses,
        terminator,
        pool,
        room,
        config.getter_interval,
        sender.plans,
    )
    cleaner = Cleaner(
        store,
        records,
        files,
        {name: service.max_age for name, service in config.services.items()},
        config.max_age,
        config.cleaner_interval,
    )
    operator = Operator(database, records, pool, directory, patience, sender.look)
    signals.sender, signals.getter, signals.cleaner = sender, getter, cleaner
    tasks = (sender.task, getter.task, cleaner.task)

    app = web.Application(middlewares=[errors_become_answers])
    if config.api_compat is ApiCompat.V2:
        app.middlewares.append(answer_v2)
    app[keys.CONFIG] = config
    app[keys.FILES] = files
    app[keys.JOBS] = store
    app[keys.RECORDS] = records
    app[keys.ROOM] = room
    app[keys.POOL] = pool
    app[keys.WATCHERS] = watchers
    app[keys.SENDER] = sender
    app[keys.TERMINATOR] = terminator
    app[keys.CLEANER] = cleaner
    app[keys.OPERATOR] = operator
    app[keys.HEALTH] = Health(room, database, pool, operator, cleaner, tasks)
    _add_routes(app)

    control = ControlSocket(operator, socket_path(config))

    async def start(app: web.Application) -> None:
        await database.open()
        await directory.open()
        await operator.start()
        await control.start()
        for task in tasks:
            await task.start()
        _announce(config)

    async def let_go() -> None:
        # First nobody says anything any more, then what that made is let go of.
        await control.stop()
        await operator.stop()
        await pool.stop()
        await asyncio.gather(sender.stop(), getter.stop(), cleaner.task.stop())

    letting_go: list[asyncio.Task[None]] = []

    async def shut_down(_app: web.Application) -> None:
        # Beside the transfers under way, which have their own time to end.
        letting_go.append(asyncio.create_task(let_go()))
        watchers.close()
        database.hurry()

    async def stop(app: web.Application) -> None:
        await asyncio.gather(*letting_go)
        await pool.close()
        await directory.close()
        await database.close()
        identity.release()

    app.on_startup.append(start)
    app.on_shutdown.append(shut_down)
    app.on_cleanup.append(stop)
    return app


def _add_routes(app: web.Application) -> None:
    app.router.add_get("/", health.ping)
    app.router.add_get("/live", health.live)
    app.router.add_get("/health", health.health)
    app.router.add_post("/upload", upload.upload)
    app.router.add_get(r"/download/{id:\d+}", download.download)
    app.router.add_get(r"/download_partial/{id:\d+}", download.download_partial)
    app.router.add_post(r"/terminate/{id:\d+}", terminate.terminate)
    app.router.add_get("/jobs", jobs.jobs)
    app.router.add_get(r"/jobs/{id:\d+}", jobs.job)
    app.router.add_delete(r"/jobs/{id:\d+}", terminate.delete)
    app.router.add_get("/events", jobs.events)
    app.router.add_get("/clients", clients.clients)
    app.router.add_get("/services", clients.services)
    app.router.add_get("/swagger", health.to_swagger)
    app.router.add_get("/swagger-ui", health.to_swagger)
    with warnings.catch_warnings():
        # It keeps what it knows under plain names.
        warnings.simplefilter("ignore", NotAppKeyWarning)
        setup_aiohttp_apispec(
            app,
            title="job-orchestrator",
            version=__version__,
            swagger_path="/swagger-ui/",
            in_place=True,
        )


def _announce(config: Config) -> None:
    for variable in config.ignored:
        log.warning("%s is no setting of a service: it is passed over", variable)
    if not config.services:
        log.warning("no service is set up: every upload is refused (SERVICE_<NAME>_URL)")
    for service in config.services.values():
        log.info(
            "service %s: clients %s, MAX_RUNS %s, RUNS_PER_USER %d, MAX_ATTEMPTS %d",
            service.name,
            ", ".join(client.base for client in service.clients),
            service.max_runs or "(its slots)",
            service.runs_per_user,
            service.max_attempts,
        )
