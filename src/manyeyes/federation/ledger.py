"""The book of open requests: who was asked for what, whose time is up, and who is therefore still busy.

A request is open until its node answers or its time is up; then it is overdue, and its node is busy, as far as anybody
knows, until it answers or is given up. A node is not asked for more while it is busy: it works on one thing at a time,
so a second request would only come as late as the first.

>>> ledger = Ledger(max_staleness=1)
>>> ledger.ask([Asked("1-fit-A", "A", "fit", 0), Asked("1-fit-B", "B", "fit", 0)])
>>> ledger.answer("1-fit-A", "A")
Asked(request_id='1-fit-A', node_id='A', kind='fit', round=0, at=0.0, late=False)
>>> [asked.node_id for asked in ledger.expire()], ledger.busy()
(['B'], frozenset({'B'}))
>>> ledger.answer("1-fit-B", "B").late, ledger.busy()
(True, frozenset())
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from manyeyes.errors import ProtocolError

__all__ = ["Asked", "Ledger"]


@dataclass(frozen=True, slots=True)
class Asked:
    """One request as the server remembers it.

    Attributes:
        request_id, node_id, kind: as in the request.
        round: index of the round whose weights it was sent with, from 0.
        at: when it was sent, on the monotonic clock.
        late: whether its time was up before it was answered.
    """

    request_id: str
    node_id: str
    kind: str
    round: int
    at: float = 0.0
    late: bool = False


class Ledger:
    """Open and overdue requests of one run, in this process.

    Args:
        max_staleness: an overdue request is given up when more rounds than this have passed since its own. A request
            may be lost with the process that had it; its node must not be passed over for ever. But a node that is
            only slower than that would be handed ever more of them, so each that is given up in a row doubles the time
            until the next.
    """

    def __init__(self, max_staleness: int) -> None:
        self._max_staleness = max_staleness
        self._open: dict[str, Asked] = {}
        self._overdue: dict[str, Asked] = {}
        self._closed: dict[str, str] = {}
        self._in_a_row: dict[str, int] = {}

    @property
    def any_open(self) -> bool:
        """Whether a request is neither answered nor overdue."""
        return bool(self._open)

    def ask(self, asked: Iterable[Asked]) -> None:
        """Write down requests that are sent."""
        self._open |= {one.request_id: one for one in asked}

    def answer(self, request_id: str, node_id: str) -> Asked:
        """Close a request that was answered.

        Raises:
            ProtocolError: nobody asked this node for it, or it was closed before.
        """
        for book in (self._open, self._overdue):
            asked = book.get(request_id)
            if asked and asked.node_id == node_id:
                del book[request_id]
                self._closed[request_id] = "answered a second time"
                self._in_a_row.pop(node_id, None)
                return asked
        raise ProtocolError(self._closed.get(request_id, "answered without being asked"))

    def expire(self) -> list[Asked]:
        """The time of the open requests is up: they are overdue from now on."""
        late = [replace(asked, late=True) for asked in self._open.values()]
        self._overdue |= {asked.request_id: asked for asked in late}
        self._open.clear()
        return late

    def overdue(self) -> list[Asked]:
        """Requests whose time is up and that are not answered."""
        return list(self._overdue.values())

    def busy(self) -> frozenset[str]:
        """Nodes that are still at work on an overdue request, as far as anybody knows."""
        return frozenset(asked.node_id for asked in self._overdue.values())

    def at_work(self) -> frozenset[str]:
        """Nodes that have not answered, in time or not, as far as anybody knows."""
        return self.busy() | frozenset(asked.node_id for asked in self._open.values())

    def withdraw(self, request_ids: Iterable[str]) -> None:
        """Close requests that will never be answered."""
        for request_id in request_ids:
            self._close(request_id, "answered what nobody waited for any more")

    def give_up(self, round: int, *, also: Iterable[str] = ()) -> list[Asked]:
        """Close the overdue requests that are too old in a round, so that their nodes can be asked again.

        Args:
            round: index of the round that begins.
            also: nodes whose requests are given up however old they are.
        """
        also = frozenset(also)
        too_old = [one for one in self._overdue.values() if one.node_id in also or round - one.round > self._most(one)]
        for asked in too_old:
            self._close(asked.request_id, f"answered what it was asked in round {asked.round + 1}, which was given up")
            self._in_a_row[asked.node_id] = self._in_a_row.get(asked.node_id, 0) + 1
        return too_old

    def _most(self, asked: Asked) -> int:
        return self._max_staleness << self._in_a_row.get(asked.node_id, 0)

    def _close(self, request_id: str, why: str) -> None:
        self._open.pop(request_id, None)
        self._overdue.pop(request_id, None)
        self._closed[request_id] = why
