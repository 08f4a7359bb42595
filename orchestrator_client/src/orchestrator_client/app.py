"""The one place where the parts of the client are put together."""

import logging

from aiohttp import web

from orchestrator_client import keys
from orchestrator_client.api import health, kill, retrieve, stream, submit
from orchestrator_client.api.authorized import Authorized
from orchestrator_client.api.original import original_servers
from orchestrator_client.check import Check
from orchestrator_client.cleaner import Cleaner
from orchestrator_client.config import Config, LegacyWire
from orchestrator_client.executors.bash import BashExecutor
from orchestrator_client.health import Health
from orchestrator_client.identity import Identity
from orchestrator_client.intake import Intake
from orchestrator_client.load import Load
from orchestrator_client.payloads import Payload, Payloads
from orchestrator_client.rebuild import rebuild
from orchestrator_client.runner import Runner
from orchestrator_client.standing import Standing
from orchestrator_client.starting import Starting
from orchestrator_client.stopping import Stopping
from orchestrator_client.streams import Streams
from orchestrator_shared.answers import errors_become_answers
from orchestrator_shared.clocks import Clock
from orchestrator_shared.errors import SettingError
from orchestrator_shared.protocol import (
    H_INSTANCE,
    H_PROTOCOL,
    HEALTH,
    KILL,
    LIVE,
    LOAD,
    PROTOCOL,
    RESULT,
    RETRIEVE,
    RETRIEVE_PARTIAL,
    STREAM,
    SUBMIT,
)
from orchestrator_shared.serving import WARNING, WIND_DOWN, is_loopback

log = logging.getLogger(__name__)


def create_app(config: Config, clock: Clock | None = None) -> web.Application:
    """The client, ready to be served; `clock` is that by which it tells ages.

    Raises:
        StartError: DATA_PATH is in use or cannot be written.
    """
    identity = Identity(config.data_path)
    try:
        payloads = Payloads(config.db_path)
    except SettingError:
        identity.release()
        raise
    clock = clock or Clock()
    standing = Standing()
    executor = BashExecutor(config.data_path, config.kill_grace, config.open_files)
    runner = Runner(config, payloads, executor, standing, clock)
    intake = Intake(config, identity, payloads, runner, standing)
    cleaner = Cleaner(config, payloads, runner, clock)
    load = Load()
    streams = Streams(config, identity, payloads, runner, load, standing)
    stopping = Stopping(config, payloads, runner, intake, streams, standing)
    tasks = [runner.task, cleaner.task, load.task]
    if config.check is not None:
        tasks.append(Check(config.check, standing, stopping).task)

    def on_change(payload: Payload) -> None:
        streams.publish(payload)
        cleaner.on_change(payload)
        stopping.on_change()

    def on_standing() -> None:
        streams.look()
        runner.task.wake()

    def take_up() -> None:
        rebuild(config.data_path, payloads, identity, clock.now())
        cleaner.remember()

    async def begin() -> None:
        payloads.listener = on_change
        standing.listener = on_standing
        runner.stuck_listener = streams.look
        await runner.open()
        for task in tasks:
            await task.start()
        log.info("instance %s, %d slots, %s", identity.instance, config.slots, config.data_path)

    starting = Starting(take_up, begin)

    middlewares = [errors_become_answers, Authorized(config.client_token).check, starting.wait]
    if config.legacy_wire is not LegacyWire.OFF:
        middlewares.insert(2, original_servers(config.legacy_wire, starting).answer)
    app = web.Application(middlewares=middlewares)
    app[keys.CONFIG] = config
    app[keys.IDENTITY] = identity
    app[keys.PAYLOADS] = payloads
    app[keys.RUNNER] = runner
    app[keys.INTAKE] = intake
    app[keys.CLEANER] = cleaner
    app[keys.STREAMS] = streams
    app[keys.LOAD] = load
    app[keys.STANDING] = standing
    app[keys.STOPPING] = stopping
    app[keys.HEALTH] = Health(config, identity, runner, standing, clock, tasks)
    app[WIND_DOWN] = stopping.wind_down
    if config.client_token is None and not is_loopback(config.host):
        app[WARNING] = "whoever can reach this client can have commands run here: " + (
            "set CLIENT_TOKEN_FILE, here and at the server"
            if config.legacy_wire is LegacyWire.OFF
            else "let nobody but its server reach it"
        )
    _add_routes(app)

    async def sign(_request: web.Request, response: web.StreamResponse) -> None:
        response.headers[H_PROTOCOL] = str(PROTOCOL)
        response.headers[H_INSTANCE] = identity.instance

    async def shut_down(_app: web.Application) -> None:
        standing.leave()
        await streams.close()

    async def stop(_app: web.Application) -> None:
        await starting.stop()
        for task in tasks[2:]:
            await task.stop()
        await runner.close()
        await cleaner.close()
        payloads.close()
        identity.release()

    app.on_response_prepare.append(sign)
    app.on_startup.append(starting.start)
    app.on_shutdown.append(shut_down)
    app.on_cleanup.append(stop)
    return app


def _add_routes(app: web.Application) -> None:
    app.router.add_get("/", health.ping)
    app.router.add_get(LIVE, health.live)
    app.router.add_get(HEALTH, health.health)
    app.router.add_get(LOAD, health.load)
    app.router.add_post(SUBMIT, submit.submit)
    app.router.add_get(RETRIEVE + r"/{id:\d+}", retrieve.retrieve)
    app.router.add_get(RESULT + r"/{id:\d+}", retrieve.result)
    app.router.add_get(RETRIEVE_PARTIAL + r"/{id:\d+}", retrieve.retrieve_partial)
    app.router.add_post(KILL + r"/{id:\d+}", kill.kill)
    app.router.add_get(STREAM, stream.stream)
