"""Every HTTP request to one client."""

import asyncio
import contextlib
import hashlib
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Final, cast

import aiohttp
from aiohttp import ClientTimeout, hdrs

from orchestrator_server.clients.outcomes import (
    Damaged,
    NotReceived,
    OutcomeUnknown,
    Outdated,
    PayloadGone,
    Refused,
    RefusedForNow,
    SubmitError,
)
from orchestrator_server.config import ClientAddress
from orchestrator_server.store.job import Job, JobInput
from orchestrator_shared.client_token import ClientToken
from orchestrator_shared.errors import ClientUnreachable, Transient
from orchestrator_shared.messages import PayloadState, decode_payload
from orchestrator_shared.multipart import body_length, stream_body
from orchestrator_shared.protocol import (
    H_ATTEMPT,
    H_CHECK,
    H_INSTANCE,
    H_JOB,
    H_JOB_STATUS,
    H_LIMIT,
    H_PROTOCOL,
    H_SERVER,
    H_SERVICE,
    LIVE,
    PROTOCOL,
    RESULT,
    RETRIEVE_PARTIAL,
    SILENCE_LIMIT,
    SUBMIT,
    claim_check,
)
from orchestrator_shared.status import PayloadStatus

#: How often a transfer is begun again without having got one byte further.
FETCH_TRIES: Final = 3
#: How much of a result is gathered (bytes) before it is written in one go.
WRITE_SIZE: Final = 1024 * 1024
#: The answers to a submit that would be the same at every other try: the job cannot be used, or
#: is too large. Others may come from a wrong URL or a proxy.
REFUSED_FOR_GOOD: Final = (400, 413)
#: For requests that are answered at once.
_SHORT: Final = ClientTimeout(total=10)

#: Of aiohttp, of the system, and of our own time limits: the other side did not answer.
UNREACHABLE = (aiohttp.ClientError, OSError, TimeoutError)


class Requests:
    """The requests to a client, as one server makes them."""

    def __init__(self, address: ClientAddress, session: aiohttp.ClientSession, server: str) -> None:
        self.server = server
        self._address = address
        self._session = session

    async def instance(self) -> str | None:
        """Which client answers at this address; None if none does."""
        try:
            async with self._session.get(
                self._address.base + LIVE, headers={H_PROTOCOL: str(PROTOCOL)}, timeout=_SHORT
            ) as response:
                return response.headers.get(H_INSTANCE)
        except UNREACHABLE:
            return None

    # --- 3 send

    async def submit(
        self, job: Job, job_input: JobInput, folder: Path, limit_s: float | None
    ) -> PayloadState:
        """Hand over a job, file by file; it may run for `limit_s` seconds. Gives back what the
        client makes of it.

        Raises:
            SubmitError: it was not taken, or nobody knows.
        """
        boundary = uuid.uuid4().hex
        written = False
        loop = asyncio.get_running_loop()
        silence = asyncio.timeout(None)
        files = [(file.name, file.size, file.sha256) for file in job_input.files]
        paths = [(name, folder / name, sha256) for name, _, sha256 in files]
        chunks = cast(AsyncGenerator[bytes, None], stream_body(boundary, paths))

        async def body() -> AsyncIterator[bytes]:
            nonlocal written
            async for chunk in chunks:
                # aiohttp limits only how long an answer takes, not how long nothing is taken.
                silence.reschedule(loop.time() + SILENCE_LIMIT)
                yield chunk
            silence.reschedule(None)
            written = True

        headers = {
            **self._headers(job, service=job.service),
            **({H_LIMIT: f"{limit_s:g}"} if limit_s is not None else {}),
            hdrs.CONTENT_TYPE: f"multipart/form-data; boundary={boundary}",
            hdrs.CONTENT_LENGTH: str(body_length(boundary, files)),
        }
        try:
            async with (
                silence,
                self._session.post(self._address.submit, data=body(), headers=headers) as response,
            ):
                if response.status != 426 and not _is_client(response):
                    problem = f"HTTP {response.status} of another program"
                    raise OutcomeUnknown(problem=f"{self._address.base}: {problem}")
                if response.status != 200:
                    raise await self._refusal(response)
                return decode_payload(await response.read())
        except SubmitError:
            raise
        except ValueError as error:
            raise OutcomeUnknown(problem=f"the answer to {SUBMIT} does not fit: {error}") from error
        except UNREACHABLE as error:
            problem = f"{self._address.base}: {error or 'it takes nothing'}"
            if written and not isinstance(error, aiohttp.ClientConnectorError):
                raise OutcomeUnknown(problem=problem) from error
            raise NotReceived(problem=problem) from error
        finally:
            await _close(chunks)

    @staticmethod
    async def _refusal(response: aiohttp.ClientResponse) -> SubmitError:
        message = f"HTTP {response.status}"
        with contextlib.suppress(ValueError, aiohttp.ClientError, KeyError, TypeError):
            message = str((await response.json())["message"])
        if response.status in (401, 421, 426):
            return NotReceived(problem=message)
        if response.status == 409:
            held = response.headers.get(H_ATTEMPT, "")
            return Outdated(int(held)) if held.isdigit() else RefusedForNow(message)
        if response.status in REFUSED_FOR_GOOD:
            return Refused(message=message)
        if response.status >= 500 and response.status not in (503, 507):
            return OutcomeUnknown(problem=message)
        return RefusedForNow(message, disk=response.status == 507, damaged=response.status == 422)

    # --- 4 run

    async def kill(self, job: Job) -> None:
        """Ask the client to end a payload; its end comes over the stream.

        Raises:
            ClientUnreachable: it did not answer, or does not know the payload.
        """
        url = f"{self._address.kill}/{job.payload}"
        try:
            async with self._session.post(
                url, headers=self._headers(job, job.payload), timeout=_SHORT
            ) as response:
                # 409: it had ended before; that end is on its way here.
                if response.status not in (200, 409) or not _is_client(response):
                    problem = f"/kill answers {response.status}"
                    raise ClientUnreachable(client=self._address.base, problem=problem)
        except UNREACHABLE as error:
            raise ClientUnreachable(client=self._address.base, problem=str(error)) from error

    async def has_lost(self, job: Job) -> bool:
        """Whether the client itself, asked for just this payload, says that there is none, or that
        it was told to drop it.

        Raises:
            ClientUnreachable: it did not answer.
        """
        url = f"{self._address.retrieve}/{job.payload}"
        try:
            async with self._session.head(
                url, headers=self._headers(job, job.payload), timeout=_SHORT
            ) as response:
                return _says_gone(response, job)
        except UNREACHABLE as error:
            raise ClientUnreachable(client=self._address.base, problem=str(error)) from error

    @contextlib.asynccontextmanager
    async def partial(self, job: Job) -> AsyncIterator[AsyncIterator[bytes]]:
        """The working directory of a payload as it is now, as a stream of zip.

        Raises:
            ClientUnreachable: it did not answer, or has no such payload.
        """
        url = f"{self._address.base}{RETRIEVE_PARTIAL}/{job.payload}"
        try:
            async with self._session.get(url, headers=self._headers(job, job.payload)) as response:
                if response.status != 200:
                    problem = f"/retrieve_partial answers {response.status}"
                    raise ClientUnreachable(client=self._address.base, problem=problem)
                yield response.content.iter_any()
        except UNREACHABLE as error:
            raise ClientUnreachable(client=self._address.base, problem=str(error)) from error

    # --- 5 get

    async def fetch(self, job: Job, payload: PayloadState, target: Path) -> PayloadState:
        """Write the result of a job's payload to a file; a transfer that breaks is gone on with.
        Gives the payload back as its files show it, here as it was told.

        Raises:
            ClientUnreachable: it broke again and again.
            PayloadGone: the client does not have it any more.
            Damaged: the bytes are not those that the client packed.
            Transient, OSError: it cannot be written here.
        """
        packed, id = payload.result, payload.id
        if packed is None:
            raise Damaged(payload=id)
        size = packed.size
        digest = hashlib.sha256()
        tries = 0
        with await asyncio.to_thread(open, target, "wb") as file:

            def keep(chunks: list[bytes]) -> None:
                try:
                    for chunk in chunks:
                        file.write(chunk)
                        digest.update(chunk)
                except OSError as error:
                    raise Transient(problem=f"it cannot be written: {error.strerror}") from error

            while (before := file.tell()) < size:
                problem = "it sends nothing"
                try:
                    async for chunks in self._read_result(job, id, before):
                        await asyncio.to_thread(keep, chunks)
                        if file.tell() > size:
                            raise Damaged(payload=id)
                except UNREACHABLE as error:
                    problem = str(error)
                tries = tries + 1 if file.tell() == before else 0
                if tries == FETCH_TRIES:
                    raise ClientUnreachable(client=self._address.base, problem=problem)
        if digest.hexdigest() != packed.sha256:
            raise Damaged(payload=id)
        return payload

    async def _read_result(self, job: Job, payload: int, start: int) -> AsyncIterator[list[bytes]]:
        headers = self._headers(job, payload)
        if start:
            headers["Range"] = f"bytes={start}-"
        url = f"{self._address.base}{RESULT}/{payload}"
        async with self._session.get(url, headers=headers) as response:
            if _says_gone(response, job):
                raise PayloadGone(payload=payload)
            if response.status != (206 if start else 200) or not _is_client(response):
                problem = f"{RESULT} answers {response.status}"
                raise ClientUnreachable(client=self._address.base, problem=problem)
            chunks: list[bytes] = []
            length = 0
            async for chunk in response.content.iter_any():
                chunks.append(chunk)
                length += len(chunk)
                if length >= WRITE_SIZE:
                    yield chunks
                    chunks, length = [], 0
            if chunks:
                yield chunks

    def _headers(self, job: Job, payload: int | None = None, service: str = "") -> dict[str, str]:
        """What a request says of itself: about this payload, or with the service: a submit."""
        number, attempt = str(job.id), str(job.attempt)
        path = str(payload) if payload is not None else ""
        headers = {
            H_PROTOCOL: str(PROTOCOL),
            H_SERVER: self.server,
            H_JOB: number,
            H_ATTEMPT: attempt,
            H_CHECK: claim_check(self.server, number, attempt, service, path),
        }
        if service:
            headers[H_SERVICE] = service
        if job.instance:
            # Another client may answer at the address by now.
            headers[H_INSTANCE] = job.instance
        return headers


def _says_gone(response: aiohttp.ClientResponse, job: Job) -> bool:
    """Whether the very client that has a job says that it has no such payload: a 404 of a proxy,
    or of another client at its address, proves nothing."""
    itself = response.headers.get(H_INSTANCE) == job.instance
    cleaned = response.headers.get(H_JOB_STATUS) == PayloadStatus.CLEANED
    return (response.status == 404 or cleaned) and itself and _is_client(response)


def _is_client(response: aiohttp.ClientResponse) -> bool:
    """Whether it is a client of our protocol that answers, and not a proxy before it."""
    return response.headers.get(H_PROTOCOL) == str(PROTOCOL)


async def _close(chunks: AsyncGenerator[bytes, None]) -> None:
    """Close the file that is open yet. Where aiohttp is about to, as it was just being read from,
    that is waited for: it takes as long as one read."""
    while True:
        try:
            await chunks.aclose()
            return
        except RuntimeError:
            await asyncio.sleep(0.001)


def new_session(token: ClientToken | None) -> aiohttp.ClientSession:
    """The one connection pool of the server: no limit of number, and of time only on silence."""
    return aiohttp.ClientSession(
        headers=token.headers if token is not None else None,
        connector=aiohttp.TCPConnector(limit=0),
        timeout=ClientTimeout(total=None, sock_connect=5, sock_read=SILENCE_LIMIT),
        auto_decompress=False,
    )
