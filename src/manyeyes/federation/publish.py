"""The model of a run goes to the sites: signed, to each node that is there. Whether it is used, the site decides."""

from __future__ import annotations

import time
from collections.abc import Iterable

from manyeyes.errors import Interrupted, ManyeyesError, ProtocolError
from manyeyes.federation.form import ModelForm
from manyeyes.federation.messages import PUBLISH, PublishPlan, publish_request, read_published
from manyeyes.federation.signature import Signer
from manyeyes.federation.transport import Reply, Request, Transport
from manyeyes.report.runlog import Emit
from manyeyes.signals import Stop
from manyeyes.weights import Weights

__all__ = ["publish"]

# A node exports the model, compares it and tests it: minutes on a small machine.
_PATIENCE = 1800.0
_LOOK_SECONDS = 1.0


def publish(
    transport: Transport,
    form: ModelForm,
    weights: Weights,
    round: int,
    signer: Signer,
    emit: Emit,
    stop: Stop,
    *,
    patience: float = _PATIENCE,
) -> None:
    """Hand a model to all nodes that are online, and wait until each has said whether its site uses it.

    Nothing of the run depends on it: whoever is not there, refuses or takes too long is named in the log, and so is why
    nobody could be asked.

    Args:
        transport: reaches the nodes.
        form, weights: of the model.
        round: rounds finished when it was made.
        signer: stands for it.
        emit: told "published" or "warning" of each node.
        stop: asked every second.
        patience: seconds.
    """
    try:
        plan = PublishPlan(round=round, signature=signer.sign(form, round, weights))
        record = publish_request(weights, plan, weights.form_hash)
        requests = [Request(f"publish-{round}-{node}", node, PUBLISH, record) for node in transport.nodes()]
        waiting = {request.request_id: request.node_id for request in requests}
        transport.send(requests)
        ends = time.monotonic() + patience
        while waiting and not stop() and time.monotonic() < ends:
            for reply in transport.receive(_LOOK_SECONDS):
                if waiting.pop(reply.request_id, None):
                    _tell(reply, weights, round, emit)
        transport.cancel(list(waiting))
        _name_silent(waiting.values(), round, emit)
    except Interrupted:
        raise
    except ManyeyesError as error:  # the run is over and its model kept
        emit("warning", round=round, reason=f"the model was not handed to the nodes: {error.reason}")


def _tell(reply: Reply, weights: Weights, round: int, emit: Emit) -> None:
    try:
        if reply.record is None:
            raise ProtocolError(reply.error or "sent nothing")
        used = read_published(reply.record, weights)
    except ProtocolError as error:
        emit("warning", node=reply.node_id, round=round, reason=f"the model was not taken: {error.reason}")
        return
    emit("published", node=reply.node_id, round=round, used=used)


def _name_silent(nodes: Iterable[str], round: int, emit: Emit) -> None:
    for node in nodes:
        emit("warning", node=node, round=round, reason="has not said whether it uses the model")
