"""The ids that a client of the original gives, and whether they can be believed."""

import logging
import math
from collections.abc import Awaitable, Callable

from orchestrator_server.clients.directory import Directory
from orchestrator_server.clients.original.exchange import Answer
from orchestrator_shared.errors import Transient

log = logging.getLogger(__name__)


class Ids:
    """They only grow, until the client begins them at 1 again."""

    def __init__(self, directory: Directory, instance: str) -> None:
        self._directory = directory
        self._instance = instance
        #: The highest one, and how often they began again.
        self.highest, self.resets = directory.original_ids(instance)
        #: How many submits there were of which nobody knows what id they got.
        self._unknown = 0.0

    @property
    def doubtful(self) -> bool:
        """Whether one that is known here may be another payload's: they may have begun again."""
        return self._unknown > 0

    def count_unknown(self) -> None:
        """Of a submit no answer came."""
        self._unknown += 1

    def count_earlier_unknown(self) -> None:
        """So it was before this server was started, who knows how often."""
        self._unknown = math.inf

    def take(self, id: int, mark: tuple[int, int]) -> bool:
        """One that was just given; gives back whether they have begun again with it. `mark` is
        (highest, resets) from before its submit."""
        highest, resets = mark
        # As high as the unknown ones alone would bring it: it may be both.
        ambiguous = self._unknown < math.inf and id <= self._unknown + 1 and self._unknown
        self._unknown = 0
        if resets == self.resets and (id <= highest or (highest and ambiguous)):
            self.resets += 1
            self.highest = id
            return True
        self.highest = max(self.highest, id)
        return False

    async def look(self, ask: Callable[[int], Awaitable[Answer | None]]) -> None:
        """Find out that they have not begun again: the client knows one above all that are known
        here, or it knows the highest of these, and the unknown ones are too few for that."""
        telling = [self.highest + 1]
        if self.highest > self._unknown:
            telling.append(self.highest)
        for id in telling:
            answer = await ask(id)
            if answer is not None and answer.shows_payload:
                self._unknown = 0
                return

    async def keep(self) -> None:
        """For the next start of this server; what cannot be written now is with the next one."""
        try:
            await self._directory.keep_original_ids(self._instance, self.highest, self.resets)
        except Transient as error:
            log.warning("the highest id of client %s is not kept: %s", self._instance, error)
