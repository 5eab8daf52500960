"""The distributed engine: our requests and replies over Flower's SuperLink and SuperNodes.

Flower carries bytes and says who is there; nothing else of it is used. At the coordinator `FlowerTransport` holds the
one task of a run and its Grid. At a node `serve_requests` takes tasks from the SuperNode and answers them in this
process, which stays warm; what a task brings as code is not looked at beyond its hash, and never run.

Flower keeps who is at work in a variable of the process (`TaskIdentity`), so a process is a coordinator or a node.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import httpx
from cryptography.hazmat.primitives import serialization
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.app.error import Error
from flwr.cli.build import build_fab_from_files
from flwr.common.serde import context_from_proto, run_from_proto
from flwr.proto.control_pb2 import ListNodesRequest, RegisterNodeRequest, StartRunRequest
from flwr.proto.fab_pb2 import Fab
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullAppMessagesRequest,
    PullTaskInputRequest,
    PushTaskOutputRequest,
)
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectUnavailableError,
    pull_and_inflate_object_from_tree,
)
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid.http_grid import HttpGrid
from flwr.supernode.runtime.run_clientapp import push_message, push_task_output

from manyeyes.errors import LimitError, ManyeyesError, ProtocolError, RunError
from manyeyes.federation.admission import Members
from manyeyes.federation.audit import AuditLog
from manyeyes.federation.messages import EVALUATE, FIT, PROTOCOL_VERSION
from manyeyes.federation.site import ModelForm
from manyeyes.federation.transport import Record, Reply, Request

__all__ = ["FlowerTransport", "RuntimeAddress", "fab", "serve_requests"]

Answer = Callable[[Request, ModelForm], Record]
"""What a node does with a request; raises errors of ours, whose words are sent in place of an answer."""

_PART = "manyeyes"
_MESSAGE_TYPES = {FIT: "train", EVALUATE: "evaluate"}
_KINDS = {name: kind for kind, name in _MESSAGE_TYPES.items()}
_MAX_ID = 200
_MAX_REASON = 500
# How often the SuperLink and the SuperNode, both on this machine, are asked for something new, in seconds.
_POLL = 0.2
_PATIENCE = 60.0
_ACQUIRE = frozenset({"/flwr.proto.Runtime/AcquireTask"})

_UNREAD = Request("unread", "", "unread", Record())

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RuntimeAddress:
    """Where this machine's SuperLink or SuperNode hands out its tasks.

    Attributes:
        address: host:port on loopback.
        secret: who does not know it gets no task.
        authority: certificate (PEM) that signed the server's; None where it speaks plainly, on loopback alone.
        runs: whether the process that listens there still does.
        wait_until_sent: returns when a SuperNode has sent so many answers on, or cannot.
    """

    address: str
    secret: str
    authority: bytes | None = None
    runs: Callable[[], bool] = lambda: True
    wait_until_sent: Callable[[int], None] = lambda answers: None

    def client(self, component: str, token: str | None = None) -> RuntimeHttpClient:
        """A client that may acquire tasks, or work on the one that a token is for."""
        guard = (
            RuntimeTokenHttpInterceptor(token)
            if token
            else SuperExecAuthHttpInterceptor(master_secret=self.secret.encode(), protected_methods=_ACQUIRE)
        )
        return RuntimeHttpClient.from_server_address(
            server_address=self.address,
            insecure=self.authority is None,
            root_certificates=self.authority,
            interceptors=[RuntimeVersionHttpInterceptor(component_name=component), guard],
        )


@cache
def fab() -> tuple[bytes, str]:
    """What Flower takes for the app of a run, and its hash: a name and a protocol version, and no code.

    Both sides make it for themselves, so a node that meets another hash knows that the other side is not this program.
    """
    project = f"""[project]
name = "manyeyes"
version = "{PROTOCOL_VERSION}.0.0"
license = "AGPL-3.0-or-later"
dependencies = []

[tool.flwr.app]
publisher = "manyeyes"

[tool.flwr.app.components]
serverapp = "installed:none"
clientapp = "installed:none"

[tool.flwr.app.config]
"""
    content, _ = build_fab_from_files({"pyproject.toml": project.encode()})
    return content, hashlib.sha256(content).hexdigest()


@dataclass(frozen=True, slots=True)
class _Sent:
    """A request on its way: to which of Flower's nodes, how long its record was, and since when the node was there."""

    request: Request
    address: int
    num_bytes: int
    there_since: str

    def failed(self, reason: str) -> Reply:
        request = self.request
        return Reply(request.request_id, request.node_id, None, error=reason[:_MAX_REASON], bytes_down=self.num_bytes)


class FlowerTransport:
    """A transport over a SuperLink that runs on this machine; a context manager that holds a run of Flower's.

    Args:
        superlink: where its SuperLink listens.
        members: the nodes that may take part; those that Flower does not know yet are made known to it.
        form: of the model that all requests are about.

    Raises:
        RunError: the SuperLink gave no task.
    """

    def __init__(self, superlink: RuntimeAddress, members: Members, form: ModelForm) -> None:
        self._members, self._form = members, form.model_dump_json()
        self._pending: dict[str, _Sent] = {}
        self._gone: list[Reply] = []
        self._there_since: dict[int, str] = {}
        self._control = ControlHttpClient.from_server_address(
            superlink.address,
            insecure=superlink.authority is None,
            root_certificates=superlink.authority,
            interceptors=[RuntimeVersionHttpInterceptor(component_name="manyeyes")],
        )
        self._register()
        content, digest = fab()
        self._control.StartRun(StartRunRequest(fab=Fab(hash_str=digest, content=content)))
        token = _acquire(superlink)
        self._grid = HttpGrid(
            superlink.address, superlink.authority is None, root_certificates=superlink.authority, token=token
        )
        self._heartbeat = HeartbeatSender(make_task_heartbeat_fn_http(self._grid._runtime_client))
        self._heartbeat.start()
        given = self._grid._runtime_client.PullTaskInput(PullTaskInputRequest())
        TaskIdentity.task_id, TaskIdentity.run_id = given.task_id, given.run.run_id
        TaskIdentity.node_id = given.context.node_id
        self._grid.set_run(run_from_proto(given.run))

    def __enter__(self) -> FlowerTransport:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        status = "completed" if kind is None else "stopped"
        try:
            self._grid._runtime_client.PushTaskOutput(PushTaskOutputRequest(sub_status=status, details=""))
        except httpx.HTTPError as error:
            _log.warning("the SuperLink could not be told that the run has ended: %s", error)
        self._heartbeat.stop()
        self._grid.close()
        self._control.close()

    def nodes(self) -> Sequence[str]:
        """Ids of the admitted nodes that are online, sorted."""
        return sorted(self._addresses())

    def send(self, requests: Sequence[Request]) -> None:
        """Hand over requests; one for a node that has gone is answered with an error at the next `receive`.

        Raises:
            RunError: the SuperLink does not answer.
        """
        addresses = self._addresses()
        for request in requests:
            if request.node_id not in addresses:
                self._gone.append(Reply(request.request_id, request.node_id, None, error="is not online any more"))
                continue
            data = request.record.to_bytes()
            about = {"request_id": request.request_id, "node_id": request.node_id, "model": self._form}
            content = _packed(data, about)
            message = Message(
                content, dst_node_id=addresses[request.node_id], message_type=_MESSAGE_TYPES[request.kind]
            )
            with _answering():
                (message_id,) = self._grid.push_messages([message])
            # Without its record: who never answers must not keep a round's weights in memory.
            sent = replace(request, record=Record())
            address = addresses[request.node_id]
            self._pending[message_id] = _Sent(sent, address, len(data), self._there_since[address])

    def receive(self, timeout: float | None) -> list[Reply]:
        """Wait for replies; empty when the time is up, or at once when nothing is pending."""
        if self._gone:
            gone, self._gone = self._gone, []
            return gone
        ends = None if timeout is None else time.monotonic() + timeout
        while self._pending:
            replies = [reply for reply in map(self._reply, self._pull()) if reply]
            left = _POLL if ends is None else ends - time.monotonic()
            if replies or left <= 0:
                return replies
            time.sleep(min(_POLL, left))
        return []

    def cancel(self, request_ids: Sequence[str]) -> list[str]:
        """None: Flower cannot take a message back, and does not tell which a node has begun."""
        return []

    def _pull(self) -> Iterable[Message]:
        try:
            return list(self._grid.pull_messages(list(self._pending)))
        except httpx.HTTPError as error:
            _log.warning("the SuperLink did not answer: %s", error)
            return []

    def _reply(self, message: Message) -> Reply | None:
        sent = self._pending.pop(message.metadata.reply_to_message_id, None)
        if sent is None:
            return None
        if message.has_error():
            return sent.failed(message.error.reason or f"Flower's error {message.error.code}")
        if message.metadata.src_node_id != sent.address:
            return sent.failed("another node answered in its place")
        try:
            data, _ = _unpacked(message.content)
            record = Record.from_bytes(data)
        except ProtocolError as error:
            return sent.failed(str(error))
        return Reply(
            sent.request.request_id, sent.request.node_id, record, bytes_down=sent.num_bytes, bytes_up=len(data)
        )

    def _addresses(self) -> dict[str, int]:
        """Node id → Flower's number of it, for the admitted nodes that are online."""
        with _answering():
            self._register()
            online = list(self._grid.get_nodes())
        addresses = {}
        for info in online:
            self._there_since[info.node_id] = info.last_activated_at
            member = self._members.find(_public_key(info.public_key))
            if member:
                addresses[member.node_id] = info.node_id
        self._fail_what_was_lost()
        return addresses

    def _fail_what_was_lost(self) -> None:
        """A node that has come anew since it was asked knows nothing of it: that was in the memory of its process."""
        for message_id, sent in list(self._pending.items()):
            if self._there_since[sent.address] != sent.there_since:
                del self._pending[message_id]
                self._gone.append(sent.failed("was away meanwhile, and what it had been asked is lost"))

    def _register(self) -> None:
        """Make those known to Flower who were admitted since it was last told."""
        known = {bytes(info.public_key) for info in self._control.ListNodes(ListNodesRequest()).nodes_info}
        for member in self._members:
            key = member.key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
            if member.revoked is None and key not in known:
                self._control.RegisterNode(RegisterNodeRequest(public_key=key))


def serve_requests(
    supernode: RuntimeAddress,
    answer: Answer,
    audit: AuditLog,
    stop: Callable[[], bool],
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
        patience: seconds without a single part of a request coming in after which it is given up. One whose
            coordinator was started again meanwhile never comes.
        received: told the length of each request before it is looked at; what it raises is the answer.
        refused: told why a request is refused.

    Returns when the last answer is on its way.

    Raises:
        RunError: the SuperNode is no longer there.
    """
    node = _Answering(supernode, answer, audit, patience, received, refused)
    with supernode.client("SuperExec") as tasks:
        while not stop():
            try:
                task = tasks.AcquireTask(AcquireTaskRequest(supported_task_types=["flwr-clientapp"]))
            except httpx.HTTPError as error:
                if not supernode.runs():
                    raise RunError("the SuperNode has ended") from error
                time.sleep(1.0)
                continue
            if not task.token:
                time.sleep(_POLL)
                continue
            try:
                node.answer_task(task.token)
            except ObjectPullError as error:
                _log.warning("a request was given up: %s", error)
            except Exception:  # noqa: BLE001 - a line that breaks or a defect must not end the node; the round goes on
                _log.exception("a request could not be answered")
    supernode.wait_until_sent(node.answered)


class _Answering:
    """What stays the same from task to task at a node; `answered` counts those whose answer the SuperNode has."""

    def __init__(
        self,
        supernode: RuntimeAddress,
        answer: Answer,
        audit: AuditLog,
        patience: float,
        received: Callable[[int], None],
        refused: Callable[[Exception], None],
    ) -> None:
        self._supernode, self._answer, self._audit, self._patience = supernode, answer, audit, patience
        self._received, self._refused = received, refused
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
            record = self._answer(request, form)
            data = record.to_bytes()
            self._audit.answer(request, record, data)
            return Message(_packed(data, {}), reply_to=message)
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
    return sum(len(array.data) for record in message.content.array_records.values() for array in record.values())


def _request_of(message: Message) -> tuple[Request, ModelForm]:
    data, values = _unpacked(message.content)
    kind = _KINDS.get(message.metadata.message_type)
    match [values.get(name) for name in ("request_id", "node_id", "model")]:
        case [str(request_id), str(node_id), str(form)] if kind and max(len(request_id), len(node_id)) <= _MAX_ID:
            return Request(request_id, node_id, kind, Record.from_bytes(data)), ModelForm.read(form)
    raise ProtocolError("the message is not a request")


def _packed(data: bytes, values: Mapping[str, str]) -> RecordDict:
    array = Array(dtype="uint8", shape=(len(data),), stype=_PART, data=data)
    return RecordDict({_PART: ArrayRecord({"record": array}), "about": ConfigRecord(dict(values))})


def _unpacked(content: RecordDict) -> tuple[bytes, Mapping[str, Any]]:
    """The bytes of a record and what was said about them; nothing is decoded here.

    Raises:
        ProtocolError: the message holds anything else.
    """
    records = dict(content.items())
    arrays, about = records.get(_PART), records.get("about")
    if records.keys() != {_PART, "about"} or not isinstance(arrays, ArrayRecord) or not isinstance(about, ConfigRecord):
        raise ProtocolError("the message does not hold one record")
    array = arrays.get("record")
    if len(arrays) != 1 or array is None or array.stype != _PART:
        raise ProtocolError("the message does not hold one record")
    return array.data, dict(about)


@contextmanager
def _answering() -> Iterator[None]:
    try:
        yield
    except httpx.HTTPError as error:
        raise RunError(
            f"the SuperLink does not answer ({type(error).__name__})",
            cure="See its log in the coordinator's state folder; start again with --resume.",
        ) from error


def _public_key(pem: bytes) -> Any:
    return serialization.load_pem_public_key(bytes(pem))


def _acquire(superlink: RuntimeAddress) -> str:
    """The token of the run's server task.

    Raises:
        RunError: none was given in a minute.
    """
    with superlink.client("SuperExec") as tasks:
        ends = time.monotonic() + _PATIENCE
        while time.monotonic() < ends:
            task = tasks.AcquireTask(AcquireTaskRequest(supported_task_types=["flwr-serverapp"]))
            if task.token:
                return str(task.token)
            time.sleep(_POLL)
    raise RunError(f"the SuperLink at {superlink.address} gave no task within {_PATIENCE:.0f} s")


@contextmanager
def _beating(client: RuntimeHttpClient) -> Iterator[None]:
    """Keep a task alive while it is worked on, however long that takes."""
    heartbeat = HeartbeatSender(make_task_heartbeat_fn_http(client))
    heartbeat.start()
    try:
        yield
    finally:
        heartbeat.stop()
