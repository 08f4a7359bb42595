"""The threads that pack: long work there holds up neither what is short nor the end."""

import asyncio
import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class Packers:
    """One thread per CPU, started when there is work for it.

    They are daemons, for Python waits at its end for the threads of its own pools: what is being
    packed when the client stops is packed at its next start.
    """

    def __init__(self) -> None:
        self._work: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]
        self._work = queue.SimpleQueue()
        self._most = len(os.sched_getaffinity(0))
        self._threads = 0
        self._busy = 0

    async def do(self, work: Callable[[], T]) -> T:
        """Do blocking work in one of them; gives back what it gives."""
        future: Future[T] = Future()
        if self._busy >= self._threads < self._most:
            self._threads += 1
            threading.Thread(target=self._turn, name="packer", daemon=True).start()
        self._busy += 1
        try:
            self._work.put((future, work))
            return await asyncio.wrap_future(future)
        finally:
            self._busy -= 1

    def close(self) -> None:
        """Let the threads go, each after what it has under way."""
        for _ in range(self._threads):
            self._work.put(None)

    def _turn(self) -> None:
        while (item := self._work.get()) is not None:
            future, work = item
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = work()
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)
