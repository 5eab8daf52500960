"""The embedded engine: the nodes of a federation in this process, one at a time."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from manyeyes.errors import Interrupted, ManyeyesError, ProtocolError
from manyeyes.federation.client import Client
from manyeyes.federation.messages import EVALUATE
from manyeyes.federation.transport import Record, Reply, Request
from manyeyes.learners.learner import ProgressCallback, silent

__all__ = ["LocalTransport"]

_log = logging.getLogger(__name__)


class LocalTransport:
    """A transport whose nodes live in this process and work inside `receive`, one request a call.

    Every record passes through bytes as it would on a wire: a node cannot touch the server's arrays, and the bytes a
    run counts are those that would have been sent. Memory does not grow with the number of nodes.

    Args:
        clients: node id → client.
        progress: told how far each fit is.
    """

    def __init__(self, clients: Mapping[str, Client], progress: ProgressCallback = silent) -> None:
        self._clients = dict(clients)
        self._progress = progress
        self._waiting: dict[str, Request] = {}

    def nodes(self) -> Sequence[str]:
        """Ids of the nodes, sorted."""
        return sorted(self._clients)

    def send(self, requests: Sequence[Request]) -> None:
        """Queue requests. A new one replaces one that its node has not begun: nobody waits for that any more.

        Raises:
            ProtocolError: a request is for a node that does not exist.
        """
        for request in requests:
            if request.node_id not in self._clients:
                raise ProtocolError(f"there is no node {request.node_id!r} here")
            self._waiting.pop(request.node_id, None)
            self._waiting[request.node_id] = request

    def receive(self, timeout: float | None) -> list[Reply]:
        """Run the oldest request and return its reply; empty when none is waiting.

        Tests go before trainings, which nodes of their own machines would not have to wait for.

        A node's work cannot be cut short, so `timeout` is not looked at here; the round loop sees that it is late.

        Raises:
            Interrupted: the user stopped the run while a node was at work.
        """
        if not self._waiting:
            return []
        tests = (node for node, request in self._waiting.items() if request.kind == EVALUATE)
        request = self._waiting.pop(next(tests, next(iter(self._waiting))))
        return [self._answer(request)]

    def cancel(self, request_ids: Sequence[str]) -> list[str]:
        """Take back what no node has begun."""
        unbegun = [request.request_id for request in self._waiting.values() if request.request_id in request_ids]
        self._waiting = {n: request for n, request in self._waiting.items() if request.request_id not in unbegun}
        return unbegun

    def _answer(self, request: Request) -> Reply:
        sent = request.record.to_bytes()
        received = Request(request.request_id, request.node_id, request.kind, Record.from_bytes(sent))
        try:
            answer = self._clients[request.node_id].handle(received, self._progress).to_bytes()
        except Interrupted:
            raise
        except ManyeyesError as error:
            return _failed(request, str(error), len(sent))
        except Exception as error:  # noqa: BLE001 - one node's defect must not end the others' round; it is logged
            _log.exception("node %s failed at request %s", request.node_id, request.request_id)
            return _failed(request, f"{type(error).__name__}: {error}", len(sent))
        record = Record.from_bytes(answer)
        return Reply(request.request_id, request.node_id, record, bytes_down=len(sent), bytes_up=len(answer))


def _failed(request: Request, reason: str, bytes_down: int) -> Reply:
    return Reply(request.request_id, request.node_id, None, error=reason, bytes_down=bytes_down)
