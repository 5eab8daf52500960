"""A node's end of the distributed engine: requests come from its SuperNode and are answered in this process.

The process stays warm from task to task; what a task brings as code is not looked at beyond its hash, and never run.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event

import httpx
from flwr.app import Context, Message
from flwr.app.error import Error
from flwr.common.serde import context_from_proto
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import AcquireTaskRequest, PullAppMessagesRequest, PullTaskInputRequest
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectUnavailableError,
    pull_and_inflate_object_from_tree,
)
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.runtime.run_clientapp import push_message, push_task_output

from manyeyes.errors import LimitError, ManyeyesError, ProtocolError, RunError
from manyeyes.federation.audit import AuditLog
from manyeyes.federation.flower import MESSAGE_TYPES, POLL, RuntimeAddress, fab, heartbeat, packed, unpacked
from manyeyes.federation.form import ModelForm
from manyeyes.federation.hello import Work
from manyeyes.federation.transport import Record, Request

__all__ = ["Answer", "serve_requests"]

Answer = Callable[[Request, ModelForm], Record]
"""What a node does with a request; raises errors of ours, whose words are sent in place of an answer."""

_KINDS = {name: kind for kind, name in MESSAGE_TYPES.items()}
_MAX_ID = 200
_UNREAD = Request("unread", "", "unread", Record())

_log = logging.getLogger(__name__)


def serve_requests(
    supernode: RuntimeAddress,
    answer: Answer,
    audit: AuditLog,
    stop: Callable[[], bool],
    work: Work,
    *,
    patience: float = 60.0,
    received: Callable[[int], None] = lambda num_bytes: None,
    refused: Callable[[Exception], None] = lambda error: None,
) -> None:
    """Answer what comes to a node, one request after the other, until `stop` says so.

    Args:
        supernode: where this machine's SuperNode listens.
        answer: called with each request in this thread.
        audit: told of everything before it leaves.
        stop: asked several times a second, and not while a request is answered.
        work: kept up to date, for whoever wants to know what the node is at.
        patience: seconds without a single part of a request coming in after which it is given up. One whose
            coordinator was started again meanwhile never comes.
        received: told the length of each request before it is looked at; what it raises is the answer.
        refused: told why a request is refused.

    Returns when the last answer is on its way.

    Raises:
        RunError: the SuperNode is no longer there, or waits for a request that does not come: start another.
    """
    node = _Answering(supernode, answer, audit, work, patience, received, refused)
    with supernode.client("SuperExec") as tasks:
        while not stop():
            try:
                task = tasks.AcquireTask(AcquireTaskRequest(supported_task_types=["flwr-clientapp"]))
            except httpx.HTTPError as error:
                if not supernode.runs():
                    raise RunError(f"the SuperNode has ended ({supernode.trouble()})") from error
                time.sleep(1.0)
                continue
            if not task.token:
                time.sleep(POLL)
                continue
            work.busy = True
            try:
                node.answer_task(task.token)
            except ObjectPullError as error:
                # The SuperNode would wait for its parts for hours, and take no other request meanwhile.
                raise RunError(f"a request was given up ({error})") from error
            except httpx.HTTPError as error:
                # It has ended, or is ending: the coordinator asks again, and if it is gone that is seen at once.
                _log.warning("a request was not answered, since the SuperNode could not be reached: %s", error)
            except Exception:  # noqa: BLE001 - a defect must not end the node; the round goes on
                _log.exception("a request could not be answered")
            finally:
                work.busy = False
    supernode.wait_until_sent(node.answered)


class _Answering:
    """What stays the same from task to task at a node; `answered` counts those whose answer the SuperNode has."""

    def __init__(
        self,
        supernode: RuntimeAddress,
        answer: Answer,
        audit: AuditLog,
        work: Work,
        patience: float,
        received: Callable[[int], None],
        refused: Callable[[Exception], None],
    ) -> None:
        self._supernode, self._answer, self._audit, self._work = supernode, answer, audit, work
        self._patience, self._received, self._refused = patience, received, refused
        self.answered = 0

    def answer_task(self, token: str) -> None:
        with self._supernode.client("flwr-clientapp", token) as client, _beating(client):
            given = client.PullTaskInput(PullTaskInputRequest())
            TaskIdentity.task_id, TaskIdentity.run_id = given.task_id, given.run.run_id
            TaskIdentity.node_id = given.context.node_id
            context = context_from_proto(given.context)
            try:
                message = _pull_message(client, context, self._patience)
            except ObjectPullError as error:
                push_task_output(client, context, "failed", str(error))
                raise
            push_message(client, self._reply_to(message, given.fab.hash_str), context)
            push_task_output(client, context, "completed", "")
            self.answered += 1

    def _reply_to(self, message: Message, fab_hash: str) -> Message:
        request = _UNREAD
        try:
            self._received(_num_bytes(message))
            if fab_hash != fab()[1]:
                raise ProtocolError(
                    "this task is of another program, or of another version of this one",
                    cure="Install the same version of manyeyes on the coordinator and its nodes.",
                )
            request, form = _request_of(message)
            if request.request_id != self._work.request_id:
                self._work.request_id, self._work.answer = request.request_id, b""
            # What is asked again was answered, and the answer was lost on its way.
            before = self._work.answer
            record = Record.from_bytes(before) if before else self._answer(request, form)
            data = before or record.to_bytes()
            self._audit.answer(request, record, data)
            self._work.answer = data
            return Message(packed(data, {}), reply_to=message)
        except Exception as error:  # noqa: BLE001 - a defect of ours must not end the node; it is logged
            self._refused(error)
            return Message(Error(code=0, reason=_told(error, request, self._audit)), reply_to=message)


def _pull_message(client: RuntimeHttpClient, context: Context, patience: float) -> Message:
    """The message of a task; its parts come in as the SuperNode gets them from far away.

    Raises:
        ObjectPullError: no part came in for `patience` seconds.
    """
    answer = client.PullMessages(PullAppMessagesRequest())
    (tree,), node = answer.message_object_trees, Node(node_id=context.node_id)
    pull = make_pull_object_fn_protobuf(client.PullObject, node, context.run_id)
    came = [time.monotonic()]

    def pull_in_time(object_id: str) -> bytes:
        try:
            part = pull(object_id)
        except ObjectUnavailableError:
            if time.monotonic() - came[0] > patience:
                raise ObjectPullError(object_id, f"nothing came for {patience:.0f} s") from None
            raise
        came[0] = time.monotonic()
        return part

    message = pull_and_inflate_object_from_tree(
        tree,
        pull_in_time,
        make_confirm_message_received_fn_protobuf(client.ConfirmMessageReceived, node, context.run_id),
        return_type=Message,
        max_tries_per_object=None,
        max_time=None,
        backoff_cap=1.0,
    )
    # A message that was taken apart does not hold its own id.
    message.metadata.__dict__["_message_id"] = tree.object_id
    return message


def _told(error: Exception, request: Request, audit: AuditLog) -> str:
    """The words for the coordinator: what is wrong, but not in which of the site's files; that stays in its own log."""
    if isinstance(error, ManyeyesError):
        _log.warning("request %s was refused: %s", request.request_id, error)
        reason = error.reason
        if isinstance(error, LimitError):
            reason = f"{reason}. {error.cure}"
    else:
        _log.error("request %s could not be carried out", request.request_id, exc_info=error)
        reason = f"a defect of this program: {type(error).__name__}"
    audit.refusal(request, reason)
    return reason


def _num_bytes(message: Message) -> int:
    """Length of all that a message holds, whatever that is; of a request, that of its record."""
    if message.has_error():
        return 0
    arrays = (array for record in message.content.array_records.values() for array in record.values())
    values = (record.get("values") for record in message.content.config_records.values())
    return sum(len(array.data) for array in arrays) + sum(len(v.encode()) for v in values if isinstance(v, str))


def _request_of(message: Message) -> tuple[Request, ModelForm]:
    data, values = unpacked(message.content)
    kind = _KINDS.get(message.metadata.message_type)
    match [values.get(name) for name in ("request_id", "node_id", "model", "values")]:
        case [str(request_id), str(node_id), str(form), str(asked)] if (
            kind and max(len(request_id), len(node_id)) <= _MAX_ID
        ):
            return Request(request_id, node_id, kind, Record.from_parts(data, asked)), ModelForm.read(form)
    raise ProtocolError("the message is not a request")


@contextmanager
def _beating(client: RuntimeHttpClient) -> Iterator[None]:
    """Keep a task alive while it is worked on, however long that takes."""
    sender = HeartbeatSender(heartbeat(client, Event()))
    sender.start()
    try:
        yield
    finally:
        sender.stop()
