"""The coordinator's end of the distributed engine: our requests and replies over a SuperLink.

`FlowerTransport` holds the one task of a run. Flower's own Grid waits for ever for a SuperLink that is gone and for an
answer of which only a part came, and holds up everything else meanwhile. So the transport asks the SuperLink itself,
one short question at a time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from threading import Event
from typing import Any, Protocol, TypeVar

import httpx
from cryptography.hazmat.primitives import serialization
from flwr.app import Message
from flwr.common.constant import ErrorCode
from flwr.common.serde import context_from_proto
from flwr.proto.control_pb2 import ListNodesRequest, RegisterNodeRequest, StartRunRequest
from flwr.proto.fab_pb2 import Fab
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree, PullObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    GetNodesRequest,
    PullAppMessagesRequest,
    PullTaskInputRequest,
    PullTaskInputResponse,
    PushTaskOutputRequest,
)
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError, inflate_object_from_contents
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.runtime.run_clientapp import push_message

from manyeyes.errors import ProtocolError, RunError
from manyeyes.federation.admission import Members
from manyeyes.federation.flower import LOST, MESSAGE_TYPES, POLL, RuntimeAddress, fab, heartbeat, packed, unpacked
from manyeyes.federation.form import ModelForm
from manyeyes.federation.hello import Greeting
from manyeyes.federation.transport import Record, Reply, Request

__all__ = ["Doorkeeper", "FlowerTransport"]

_T = TypeVar("_T")

_MAX_REASON = 500
# How often the SuperLink is asked for answers when the door has not heard of any, in seconds.
_LOOK = 1.0
_PATIENCE = 60.0
# A node that is idle hears of a request within a second or so.
_LOST_AFTER = 20.0
# An answer is a record, what is said about it, and the record's bytes in parts of some megabytes.
_MOST_PARTS = 10_000
# What Flower says in a node's place: it is gone, its trainer was silent, or a part of the message is not there.
_ABSENT = {
    ErrorCode.NODE_UNAVAILABLE: "is not online any more",
    ErrorCode.CLIENT_APP_CRASHED: "its trainer was silent for a minute",
    ErrorCode.MESSAGE_UNAVAILABLE: "the request is not there any more",
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE: "the answer is not there any more",
}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Sent:
    """A request on its way: to which of Flower's nodes, how long its record was, and when it was sent."""

    request: Request
    address: int
    num_bytes: int
    when: float = field(default_factory=time.monotonic)

    def failed(self, reason: str, *, absent: bool = False) -> Reply:
        request = self.request
        return Reply(
            request.request_id,
            request.node_id,
            None,
            error=reason[:_MAX_REASON],
            bytes_down=self.num_bytes,
            absent=absent,
        )

    def without_record(self) -> _Sent:
        return replace(self, request=replace(self.request, record=Record()))


@dataclass(slots=True)
class _Arriving:
    """An answer of which some parts may still be missing."""

    sent: _Sent
    message_id: str
    missing: list[str]
    parts: dict[str, bytes] = field(default_factory=dict)
    num_bytes: int = 0
    passed: int = 0
    moved: float = field(default_factory=time.monotonic)

    def stands_still(self, passed: int) -> bool:
        """Whether its node, which has sent so many bytes by now, has sent nothing for a while."""
        if passed != self.passed:
            self.passed, self.moved = passed, time.monotonic()
        return time.monotonic() - self.moved > _LOST_AFTER


class Doorkeeper(Protocol):
    """What a transport and the door of its coordinator tell each other."""

    def ring(self, node_id: str) -> None:
        """There is something new for a node."""

    def heard(self, node_id: str) -> Greeting | None:
        """What a node said of itself when it was last heard."""

    def met(self, numbers: Mapping[str, int]) -> None:
        """What Flower calls the nodes."""

    def too_long(self, node_id: str) -> bool:
        """Whether a node has sent more, since this was last asked, than an answer can hold."""

    def passed(self, node_id: str) -> int:
        """Bytes of answers that a node has sent; a number that does not change means that it sends none."""

    def wait(self, timeout: float) -> None:
        """Until a node has sent something, or for so many seconds."""


class _Nobody:
    """Where there is no door."""

    def ring(self, node_id: str) -> None:
        pass

    def heard(self, node_id: str) -> Greeting | None:
        return None

    def met(self, numbers: Mapping[str, int]) -> None:
        pass

    def too_long(self, node_id: str) -> bool:
        return False

    def passed(self, node_id: str) -> int:
        return 0

    def wait(self, timeout: float) -> None:
        time.sleep(min(timeout, POLL))


class FlowerTransport:
    """A transport over a SuperLink that runs on this machine; a context manager that holds a run of Flower's.

    A SuperLink that ends is started again and goes on from its database; a run that it gave up is opened anew, and
    what was asked in it is asked again.

    Args:
        superlink: where its SuperLink listens.
        members: the nodes that may take part; those that Flower does not know yet are made known to it.
        form: of the model that all requests are about.
        most_bytes: length of the longest answer; the rest of a longer one is not fetched.
        door: knows what nodes say of themselves; one that does not know what it was asked, since a line broke or it
            was killed and is there again, is asked again.

    Raises:
        RunError: the SuperLink gave no task.
    """

    def __init__(
        self,
        superlink: RuntimeAddress,
        members: Members,
        form: ModelForm,
        *,
        most_bytes: int = 2**31,
        door: Doorkeeper | None = None,
    ) -> None:
        self._door = door or _Nobody()
        self._superlink, self._members, self._form = superlink, members, form.model_dump_json()
        self._most_bytes = most_bytes
        self._pending: dict[str, _Sent] = {}
        self._arriving: list[_Arriving] = []
        self._returning: list[_Sent] = []
        self._done: list[Reply] = []
        self._latest: dict[str, str] = {}
        self._unwanted: set[str] = set()
        self._control = ControlHttpClient.from_server_address(
            superlink.address,
            insecure=superlink.authority is None,
            root_certificates=superlink.authority,
            interceptors=[RuntimeVersionHttpInterceptor(component_name="manyeyes")],
        )
        self._mended(self._register)
        self._task = self._mended(lambda: _Task(superlink, self._control))

    def __enter__(self) -> FlowerTransport:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._task.end("completed" if kind is None else "stopped")
        self._control.close()

    def nodes(self) -> Sequence[str]:
        """Ids of the admitted nodes that are online, sorted."""
        return sorted(self._addresses())

    def send(self, requests: Sequence[Request]) -> None:
        """Hand over requests; one for a node that has gone is answered with an error at the next `receive`.

        Raises:
            RunError: the SuperLink does not answer.
            ResourceError: it has no room to keep a request.
        """
        addresses = self._addresses()
        self._latest |= {request.node_id: request.request_id for request in requests}
        self._returning = [sent for sent in self._returning if self._counts(sent)]
        self._drop_records()
        for request in requests:
            if request.node_id in addresses:
                self._hand_over(request, addresses[request.node_id])
            else:
                sent = _Sent(request, 0, 0)
                self._done.append(sent.failed("is not online any more", absent=True))

    def receive(self, timeout: float | None) -> list[Reply]:
        """Wait for replies; empty when the time is up, or at once when nothing is pending.

        Raises:
            RunError: the SuperLink does not answer.
            ResourceError: there is no room for what nodes send.
        """
        ends = None if timeout is None else time.monotonic() + timeout
        while self._pending or self._arriving or self._returning or self._done:
            # What has no room here is never heard of: Flower loses it, and the node believes it was sent.
            self._superlink.revive()
            self._ask_again()
            self._call(self._look)
            self._call(self._fetch)
            replies, self._done = self._done, []
            left = _LOOK if ends is None else ends - time.monotonic()
            if replies or left <= 0:
                return replies
            self._door.wait(min(_LOOK, left))
        return []

    def cancel(self, request_ids: Sequence[str]) -> list[str]:
        """Those whose node is not there: Flower cannot take a message back, and does not tell which a node has begun.

        One that its node turns out not to know of is not asked again, but answered with an error.
        """
        self._unwanted.update(request_ids)
        known = [*self._pending.values(), *(arriving.sent for arriving in self._arriving), *self._returning]
        self._unwanted &= {sent.request.request_id for sent in known}
        withdrawn = [sent.request.request_id for sent in self._returning if not self._wanted(sent)]
        self._returning = [sent for sent in self._returning if self._wanted(sent)]
        self._drop_records()
        return withdrawn

    def _drop_records(self) -> None:
        """Who never answers must not keep the weights of rounds in memory that nobody asks it for any more."""
        self._pending = {
            message_id: sent if self._wanted(sent) else sent.without_record()
            for message_id, sent in self._pending.items()
        }
        for arriving in self._arriving:
            if not self._wanted(arriving.sent):
                arriving.sent = arriving.sent.without_record()

    def _hand_over(self, request: Request, address: int) -> None:
        # Flower keeps, and is sent, the arrays of a round once for all its nodes: it knows equal parts by their hash.
        data, values = request.record.to_parts()
        about = {"request_id": request.request_id, "node_id": request.node_id, "model": self._form, "values": values}

        def push() -> str:
            # A message names the run it is of, so it is made anew when that was lost.
            message = Message(packed(data, about), dst_node_id=address, message_type=MESSAGE_TYPES[request.kind])
            push_message(self._task.client, message, self._task.context)
            return message.metadata.message_id

        self._pending[self._call(push)] = _Sent(request, address, len(data) + len(values.encode()))
        self._door.ring(request.node_id)

    def _counts(self, sent: _Sent) -> bool:
        """Whether a node was asked nothing newer."""
        return self._latest.get(sent.request.node_id) == sent.request.request_id

    def _wanted(self, sent: _Sent) -> bool:
        """Whether somebody may still wait for this."""
        return self._counts(sent) and sent.request.request_id not in self._unwanted

    def _lose(self, sent: _Sent) -> None:
        """Its node does not know of this: it is asked again, unless nobody waits for it any more."""
        if self._wanted(sent):
            self._returning.append(sent)
        elif self._counts(sent):
            self._done.append(sent.failed("was away meanwhile, and what it had been asked is lost", absent=True))

    def _ask_again(self) -> None:
        """Send again what a node that is there, and has nothing to do, does not know of; give up what is refused."""
        active = {member.node_id for member in self._members if member.revoked is None}
        for message_id, sent in list(self._pending.items()):
            if refused := self._refused(sent, active):
                del self._pending[message_id]
                self._done.append(refused)
            elif self._forgotten(sent):
                del self._pending[message_id]
                self._lose(sent)
        for arriving in list(self._arriving):
            if refused := self._refused(arriving.sent, active):
                self._arriving.remove(arriving)
                self._done.append(refused)
            elif self._forgotten(arriving.sent) or self._stuck(arriving):
                self._arriving.remove(arriving)
                self._lose(arriving.sent)
        if self._returning:
            self._hand_over_to_returned()

    def _refused(self, sent: _Sent, active: Collection[str]) -> Reply | None:
        """What is said in place of an answer that nobody waits for any more."""
        node = sent.request.node_id
        if node not in active:
            return sent.failed("was revoked")
        return self._excess(sent) if self._door.too_long(node) else None

    def _forgotten(self, sent: _Sent) -> bool:
        said = self._door.heard(sent.request.node_id)
        if said is None or said.heard < sent.when + _LOST_AFTER:
            return False
        return not said.work.busy and said.work.request_id != sent.request.request_id

    def _stuck(self, arriving: _Arriving) -> bool:
        """Whether the rest of an answer will not come, though its node is there."""
        node = arriving.sent.request.node_id
        return arriving.stands_still(self._door.passed(node)) and self._comes_back(node)

    def _comes_back(self, node_id: str) -> bool:
        """Whether a node was heard a moment ago, though Flower takes it for gone."""
        said = self._door.heard(node_id)
        return said is not None and time.monotonic() - said.heard < _LOST_AFTER

    def _hand_over_to_returned(self) -> None:
        addresses, returning = self._addresses(), self._returning
        self._returning = []
        for sent in returning:
            node = sent.request.node_id
            said = self._door.heard(node)
            if node in addresses:
                _log.warning("%s was gone, and is asked again", node)
                self._hand_over(sent.request, addresses[node])
            elif said and time.monotonic() - said.heard < _PATIENCE:
                self._returning.append(sent)
            else:
                self._done.append(sent.failed("is not online any more", absent=True))

    def _look(self) -> None:
        """Which requests have an answer; its parts are fetched by `_fetch`."""
        if not self._pending:
            return
        answer = self._task.client.PullMessages(PullAppMessagesRequest(message_ids=list(self._pending)))
        for message, tree in zip(answer.messages_list, answer.message_object_trees, strict=True):
            sent = self._pending.pop(message.metadata.reply_to_message_id, None)
            if sent is None:
                continue
            parts = _parts(tree)
            if len(parts) > _MOST_PARTS:
                self._done.append(sent.failed(f"the answer has {len(parts)} parts, more than {_MOST_PARTS}"))
                continue
            self._arriving.append(_Arriving(sent, message.metadata.message_id, parts))

    def _fetch(self) -> None:
        """Fetch what is there of the answers; those that are whole, or never will be, are done."""
        for arriving in list(self._arriving):
            reply = self._fetched(arriving)
            if reply is None:
                continue
            self._arriving.remove(arriving)
            if not reply.absent or (self._counts(arriving.sent) and not self._comes_back(reply.node_id)):
                self._done.append(reply)
            else:
                self._lose(arriving.sent)

    def _fetched(self, arriving: _Arriving) -> Reply | None:
        client, node = self._task.client, Node(node_id=self._task.context.node_id)
        run_id = self._task.context.run_id
        while arriving.missing:
            part = client.PullObject(PullObjectRequest(node=node, run_id=run_id, object_id=arriving.missing[-1]))
            if not part.object_found:
                return arriving.sent.failed("the answer did not come in whole", absent=True)
            if not part.object_available:
                return None
            arriving.num_bytes += len(part.object_content)
            if arriving.num_bytes > self._most_bytes:
                return self._excess(arriving.sent)
            arriving.parts[arriving.missing.pop()] = part.object_content
        client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(node=node, run_id=run_id, message_object_id=arriving.message_id)
        )
        return _reply(arriving)

    def _excess(self, sent: _Sent) -> Reply:
        return sent.failed(f"the answer is longer than the {self._most_bytes} bytes that one about this model can have")

    def _call(self, ask: Callable[[], _T]) -> _T:
        """What the SuperLink answers, whatever has to be mended for it.

        Raises:
            RunError: it does not answer for a minute, or ended again and again.
            ResourceError: it has no room to keep what it was sent.
        """

        def ask_in_a_run() -> _T:
            if self._task.lost.is_set():
                self._open_again()
            try:
                return ask()
            except httpx.HTTPStatusError as error:
                if error.response.status_code in LOST:
                    self._task.lost.set()
                raise

        return self._mended(ask_in_a_run)

    def _mended(self, ask: Callable[[], _T]) -> _T:
        """What the SuperLink answers when it runs and has room; raises as `_call`."""
        ends = time.monotonic() + _PATIENCE
        while True:
            try:
                return ask()
            except (httpx.HTTPError, ObjectPushError) as error:
                self._superlink.revive()
                if time.monotonic() > ends:
                    raise RunError(
                        f"the SuperLink on this machine does not do what it is asked: {self._superlink.trouble()}",
                        cure="See its log in the coordinator's state folder; start again with --resume.",
                    ) from error
            time.sleep(POLL)

    def _open_again(self) -> None:
        """Go on in another run of Flower's: this one was silent for a minute, as when the machine slept."""
        _log.warning("the SuperLink has given the run up; it is opened again, and what was asked is asked again")
        before, self._task = self._task, _Task(self._superlink, self._control)
        before.end("stopped")
        asked = [*self._pending.values(), *(arriving.sent for arriving in self._arriving)]
        self._pending, self._arriving = {}, []
        for sent in asked:
            if self._wanted(sent):
                self._hand_over(sent.request, sent.address)
            else:
                self._lose(sent)

    def _addresses(self) -> dict[str, int]:
        """Node id → Flower's number of it, for the admitted nodes that are online."""
        self._mended(self._register)
        addresses = {}
        for info in self._call(lambda: self._task.client.GetNodes(GetNodesRequest())).nodes:
            member = self._members.find(_public_key(info.public_key))
            if member:
                addresses[member.node_id] = info.node_id
        return addresses

    def _register(self) -> None:
        """Make those known to Flower who were admitted since it was last told."""
        nodes = self._control.ListNodes(ListNodesRequest()).nodes_info
        known = {bytes(info.public_key): int(info.node_id) for info in nodes}
        numbers = {}
        for member in self._members:
            key = member.key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
            if member.revoked is None and key in known:
                numbers[member.node_id] = known[key]
            elif member.revoked is None:
                self._control.RegisterNode(RegisterNodeRequest(public_key=key))
        self._door.met(numbers)


class _Task:
    """The one task of a run of Flower's: who may speak for it, kept alive from opening to end."""

    def __init__(self, superlink: RuntimeAddress, control: ControlHttpClient) -> None:
        content, digest = fab()
        run_id = control.StartRun(StartRunRequest(fab=Fab(hash_str=digest, content=content))).run_id
        self.client, given = _acquire(superlink, run_id)
        self.context = context_from_proto(given.context)
        TaskIdentity.task_id, TaskIdentity.run_id = given.task_id, run_id
        TaskIdentity.node_id = given.context.node_id
        self.lost = Event()
        self._heartbeat = HeartbeatSender(heartbeat(self.client, self.lost))
        self._heartbeat.start()

    def end(self, how: str) -> None:
        """Tell the SuperLink that the run has ended, if it still listens."""
        if self._heartbeat.is_running:
            self._heartbeat.stop()
        try:
            self.client.PushTaskOutput(PushTaskOutputRequest(sub_status=how, details=""))
        except httpx.HTTPError as error:
            _log.warning("the SuperLink could not be told that the run has ended: %s", type(error).__name__)
        self.client.close()


def _acquire(superlink: RuntimeAddress, run_id: int) -> tuple[RuntimeHttpClient, PullTaskInputResponse]:
    """The task of our run. Whoever works on this machine can start another's, which is ended here and never obeyed.

    Raises:
        RunError: none was given in a minute.
    """
    with superlink.client("SuperExec") as tasks:
        ends = time.monotonic() + _PATIENCE
        while time.monotonic() < ends:
            task = tasks.AcquireTask(AcquireTaskRequest(supported_task_types=["flwr-serverapp"]))
            if not task.token:
                time.sleep(POLL)
                continue
            client = superlink.client("flwr-serverapp", str(task.token))
            given = client.PullTaskInput(PullTaskInputRequest())
            if given.run.run_id == run_id:
                return client, given
            _log.warning("somebody on this machine has started a run of something else; it is ended")
            client.PushTaskOutput(PushTaskOutputRequest(sub_status="stopped", details="not of this program"))
            client.close()
    raise RunError(f"the SuperLink at {superlink.address} gave no task within {_PATIENCE:.0f} s")


def _parts(tree: ObjectTree) -> list[str]:
    return [part.object_id for part in iterate_object_tree(tree)]


def _reply(arriving: _Arriving) -> Reply:
    """What came, once it is whole; nothing of it is believed yet."""
    sent = arriving.sent
    try:
        message = inflate_object_from_contents(arriving.message_id, arriving.parts)
        if not isinstance(message, Message):
            raise ProtocolError("the answer is not a message")
        if message.has_error():
            code = message.error.code
            if code in _ABSENT:
                return sent.failed(_ABSENT[code], absent=True)
            return sent.failed(message.error.reason or f"Flower's error {code}")
        if message.metadata.src_node_id != sent.address:
            return sent.failed("another node answered in its place")
        data, _ = unpacked(message.content)
        record = Record.from_bytes(data)
    except ProtocolError as error:
        return sent.failed(str(error))
    except (ValueError, KeyError, TypeError) as error:
        return sent.failed(f"the answer could not be read ({type(error).__name__})")
    request = sent.request
    return Reply(request.request_id, request.node_id, record, bytes_down=sent.num_bytes, bytes_up=len(data))


def _public_key(pem: bytes) -> Any:
    return serialization.load_pem_public_key(bytes(pem))
