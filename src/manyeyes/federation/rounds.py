"""The round loop: synchronous rounds with a deadline, or buffered asynchronous ones, from a template to final weights.

With `federation.finetune_after` every node goes on for itself when the last round is over, from the weights that the
run ends with, and what it learns stays there. That is local adaptation (Yu, Bagdasaryan and Shmatikov 2020,
arXiv:2002.04758): a site whose pictures differ from the others' is better served by it than by any common model.

A round, in this order: draw the cohort, ask its nodes to train, check and merge each update as it arrives, step, ask
all nodes to test, write the checkpoint. At any moment the state after the last finished round is on disk; a run that
is killed and resumed ends in the same bits as one that was not.

Who misses a deadline is asked for nothing more until it has answered (`ledger.py`). With `federation.late: next_round`
its update is merged in the round that is held when it comes, and counts by how many rounds that is late; those that
came and were not merged yet are in memory only, so a run that is killed loses them and nothing else.

With `federation.mode: async` this is the rule: a round ends with its first K updates (`federation.buffer`), whoever is
still at work, and who has answered is given the newest model at once. That is FedBuff (Nguyen et al. 2022,
arXiv:2106.06639), a round being what they call a server step. But no node is asked twice with the same model: in
a federation of some sites a fast one would fill the buffer with updates that differ in nothing but their draws. It
waits for the next model instead. So a node's draws depend on (seed, round, node) here too, and the same answers in the
same order give the same bits.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from manyeyes.config import EvaluateSection, FederationSection, TrainSection
from manyeyes.errors import (
    AbsentNodesError,
    ConfigError,
    Interrupted,
    ProtocolError,
    RunError,
    UpdateRefusedError,
    WeightsError,
)
from manyeyes.federation.checkpoint import (
    Best,
    RoundState,
    Totals,
    check_same_settings,
    load_checkpoint,
    save_checkpoint,
)
from manyeyes.federation.client import expand_personal
from manyeyes.federation.contribution import judges, updated
from manyeyes.federation.contribution import weights as worths
from manyeyes.federation.joined import Joined
from manyeyes.federation.ledger import Asked, Ledger
from manyeyes.federation.membership import buffer_size, check_buffer, sample_cohort
from manyeyes.federation.messages import (
    EVALUATE,
    FIT,
    EvaluatePlan,
    evaluate_request,
    fit_request,
    read_metrics,
    read_update,
)
from manyeyes.federation.strategies import Merge, build_strategy
from manyeyes.federation.transport import Record, Reply, Request, Transport
from manyeyes.learners.learner import FitPlan, Metrics, Template
from manyeyes.report.runlog import Emit
from manyeyes.signals import Stop
from manyeyes.weights import Update, Weights, check_finite

__all__ = ["Expected", "HeldOut", "RowResult", "never", "run_rounds", "settings_of"]

Expected = Callable[[FitPlan], tuple[frozenset[str], frozenset[str]]]
"""Names of the trained tensors and of the buffers that a learner's update holds for a plan, personal ones included."""

HeldOut = Callable[[Weights], Metrics]
"""Tests weights on pictures that belong to no node."""


# How long one wait for replies lasts before the signals and the deadline are looked at again, in seconds.
_POLL = 1.0
# Why no more answers come: the transport has nothing pending.
_NOTHING_PENDING = "no answer"


def never() -> None:
    """The stop callback of a run that nobody interrupts."""
    return


@dataclass(frozen=True, slots=True)
class RowResult:
    """What a run of rounds ends with.

    Attributes:
        weights: the global weights of the round that is kept.
        bytes_up, bytes_down: from and to the nodes, over all rounds.
        seconds: of all rounds, those before a resume included.
        rounds: rounds finished.
        kept: the round whose weights these are; 0 for those a run starts from.
    """

    weights: Weights
    bytes_up: int
    bytes_down: int
    seconds: float
    rounds: int
    kept: int


def run_rounds(
    transport: Transport,
    template: Template,
    *,
    train: TrainSection,
    federation: FederationSection,
    evaluate: EvaluateSection,
    seed: int,
    expected: Expected,
    folder: Path,
    emit: Emit,
    resume: bool = False,
    stop: Stop = never,
    held_out: HeldOut | None = None,
    settings: Mapping[str, Any] | None = None,
    test_start: bool = False,
) -> RowResult:
    """Hold all rounds of a run.

    Args:
        transport: reaches the nodes.
        template: the model and the weights the run starts from.
        train: what a node does in a round.
        federation: rounds, cohort, strategy, personal tensors, deadline (for training and for testing each), what
            becomes of late updates, and whether the last or the best round is kept. The best has the highest mean mAP50
            over the nodes, each counted once, on their "val" pictures; of equal ones the later. `min_nodes` counts
            every update that is merged, late ones too.
        evaluate: how often the global model is tested on the nodes' "val" pictures; always after the last round.
        seed: seed of the run; cohorts and the nodes' draws depend on it.
        expected: what an update must hold, from the learner; no node is asked for it.
        folder: where the checkpoints are kept; one folder a run.
        emit: told of every event, as listed in report/runlog.py.
        resume: go on after the last finished round in `folder`, or begin if there is none.
        stop: asked between replies and rounds.
        held_out: tests the global model on pictures the coordinator holds, as often as the nodes test it on theirs.
        settings: further settings that the result depends on (the sites, …); a resume must find them unchanged.
        test_start: before the first round the nodes test the weights the run starts from, told as round 0. What that
            sends counts to round 1.

    Raises:
        RunError: fewer than `min_nodes` nodes or good updates (AbsentNodesError where the missing ones were not heard
            of); another run in `folder`; nothing that can be resumed.
        ConfigError: `personal` matches nothing, or leaves nothing to share.
        Interrupted: `stop` named a signal, which is the error's reason; every finished round is on disk.
    """
    run = _Rounds(transport, template, train, federation, evaluate, seed, expected, folder, emit, stop, held_out)
    state = run.open(resume, settings or {})
    resumed_from = state.round if resume and state.round else None
    emit("row_started", nodes=list(transport.nodes()), rounds=federation.rounds, resumed_from=resumed_from)
    if test_start and not state.round:
        run.test_start(state)
    while state.round < federation.rounds:
        state = run.hold(state)
    run.close()
    best = state.best
    if federation.keep == "best" and best is None:
        emit("warning", reason="no round was tested on validation pictures by every node, so the last one is kept")
    weights, kept = (best.weights, best.round) if best else (state.weights, state.round)
    totals = run.finetune(state, weights, kept) if federation.finetune_after else state.totals
    emit(
        "row_finished",
        bytes_down=totals.bytes_down,
        bytes_up=totals.bytes_up,
        seconds=round(totals.seconds, 3),
        kept=kept,
        score=best.score if best else None,
    )
    return RowResult(weights, totals.bytes_up, totals.bytes_down, totals.seconds, state.round, kept)


class _Rounds:
    """What stays the same from round to round, and the steps of one."""

    def __init__(
        self,
        transport: Transport,
        template: Template,
        train: TrainSection,
        federation: FederationSection,
        evaluate: EvaluateSection,
        seed: int,
        expected: Expected,
        folder: Path,
        emit: Emit,
        stop: Stop,
        held_out: HeldOut | None,
    ) -> None:
        self.transport = transport
        self.template = template
        self.form_hash = template.form_hash
        self.federation = federation
        self.evaluate = evaluate
        self.folder = folder
        self.emit = emit
        self.stop = stop
        self.held_out = held_out
        self.strategy = build_strategy(federation.strategy)
        self.plan = self.strategy.plan(
            FitPlan(train=train, round=0, rounds=federation.rounds, seed=seed, personal=federation.personal)
        )
        self.delta_names, self.buffer_names = _shared_names(template, self.plan, expected)
        # An answer to an earlier process of this run must not pass for one to this one.
        self.token = secrets.token_hex(4)
        self.joined = Joined(folder)
        self.ledger = Ledger(federation.max_staleness)
        self.merges_late = federation.late == "next_round"
        self.asynchronous = federation.mode == "async"
        # Node → index of the round with whose weights it was last asked to train.
        self.asked_with: dict[str, int] = {}
        self.came_late: list[tuple[Asked, Reply]] = []
        # Node → why no answer will come to what it was asked in an earlier round; of this round.
        self.gone: dict[str, str] = {}
        self.buffer_checked_for = 0
        self.judges_updates = federation.weighting == "contribution"
        self.bytes_up = 0
        self.bytes_down = 0
        self.bytes_of: dict[str, dict[str, int]] = {}

    def open(self, resume: bool, settings: Mapping[str, Any]) -> RoundState:
        """The state to go on from; it is on disk when this returns."""
        own = settings_of(self.template, self.plan.train, self.federation, self.evaluate, self.plan.seed)
        settings = {**own, **json.loads(json.dumps(dict(settings), default=str))}
        saved = load_checkpoint(self.folder, self.emit)
        if saved is None:
            self.joined.go_back(0)
            fresh = RoundState(self.template.weights, settings=settings)
            save_checkpoint(self.folder, fresh)
            return fresh
        if not resume:
            raise RunError(
                f"holds a run that finished {saved.round} rounds",
                file=self.folder,
                cure="Resume it, or choose another name.",
            )
        check_same_settings(saved.settings, settings)
        self.joined.go_back(saved.round)
        best = saved.best and replace(saved.best, weights=self._ordered(saved.best.weights))
        return replace(saved, weights=self._ordered(saved.weights), best=best)

    def _ordered(self, weights: Weights) -> Weights:
        """A file sorts its tensors; learners see them in the order of the model."""
        return Weights({name: weights[name] for name in self.template.weights})

    def test_start(self, state: RoundState) -> None:
        """Ask every node to test the weights the run starts from: who gains is measured against them."""
        self._stop_if_asked(state.round)
        self._evaluate(state.weights, 0)

    def hold(self, state: RoundState) -> RoundState:
        """One round; the state it returns is on disk."""
        self._stop_if_asked(state.round)
        watch = _Stopwatch()
        number = state.round + 1
        cohort = self._cohort(state.round)
        self.emit("round_started", round=number, cohort=list(cohort))
        collected = self._collect(state, cohort)
        watch.lap("fit")
        weights, strategy_state = self._step(state, collected.merge)
        watch.lap("merge")
        if number == self.federation.rounds:
            self._cancel_the_rest()
        due = number % self.evaluate.every == 0 or number == self.federation.rounds
        tested = self._evaluate(weights, number) if due else _Tested({}, complete=False)
        best = self._better(state.best, weights, number, tested.score)
        contributions = self._judge(state, collected, tested)
        watch.lap("evaluate")
        last_merged = {**state.last_merged, **collected.merged}
        totals = self._totals(state, watch)
        after = RoundState(weights, strategy_state, number, totals, state.settings, last_merged, best, contributions)
        save_checkpoint(self.folder, after)
        watch.lap("checkpoint")
        seconds = {**watch.laps, "total": round(watch.total(), 3)}
        sent = {"bytes_down": self.bytes_down, "bytes_up": self.bytes_up, "nodes": self.bytes_of}
        self.emit("round_finished", round=number, **sent, seconds=seconds)
        self.bytes_up, self.bytes_down, self.bytes_of = 0, 0, {}
        return after

    def _better(self, best: Best | None, weights: Weights, number: int, score: float | None) -> Best | None:
        if self.federation.keep == "last" or score is None or (best and score < best.score):
            return best
        return Best(weights, number, score)

    def _totals(self, state: RoundState, watch: _Stopwatch) -> Totals:
        before = state.totals
        return Totals(
            before.bytes_up + self.bytes_up, before.bytes_down + self.bytes_down, before.seconds + watch.total()
        )

    def finetune(self, state: RoundState, weights: Weights, kept: int) -> Totals:
        """Every node that is there goes on for itself from these weights, and tests what it has made of them.

        Returns the totals with what this took. A node that does not is told of, and nothing depends on it.
        """
        self._stop_if_asked(state.round)
        watch, number = _Stopwatch(), self.federation.rounds + 1
        nodes = self._nodes(state.round)
        plan = self.plan.model_copy(update={"round": state.round, "rounds": number})
        own = {"finetune": True, "mix": self.federation.finetune_mix, "kept": kept, "proximal_mu": 0.0}
        plan = plan.model_copy(update={**own, "tell_step_sum": False})
        requests = {
            node: fit_request(
                weights,
                plan.model_copy(update={"node_id": node, "train": self._own_training(node)}),
                self.form_hash,
            )
            for node in nodes
        }
        done = []
        for asked, reply in self._ask(FIT, requests, state.round, times=self.federation.finetune_after):
            if asked.round < state.round:
                self._tell_too_late(asked)
                continue
            try:
                read_update(_record_of(reply), self.template.weights, (), ())
            except (ProtocolError, UpdateRefusedError) as error:
                self.emit("warning", round=number, node=reply.node_id, reason=f"has no model of its own: {error}")
                continue
            done.append(reply.node_id)
        self._evaluate_own(weights, kept, done)
        return self._totals(state, watch)

    def _evaluate_own(self, weights: Weights, kept: int, nodes: Sequence[str]) -> None:
        number = self.federation.rounds + 1
        plan = EvaluatePlan(split="val", imgsz=self._tested_at, round=kept, finetuned=True)
        record = evaluate_request(weights, plan, self.form_hash)
        for _, reply in self._ask(EVALUATE, dict.fromkeys(nodes, record), number - 1):
            try:
                metrics = self._read_metrics(reply)
            except (ProtocolError, UpdateRefusedError) as error:
                self.emit("warning", round=number, node=reply.node_id, reason=f"could not test its own model: {error}")
                continue
            self.emit("finetuned", round=number, node=reply.node_id, metrics=metrics.to_dict())

    def _training_of(self, node: str) -> TrainSection:
        own = self.federation.per_node.get(node)
        return own.applied_to(self.plan.train) if own else self.plan.train

    def _own_training(self, node: str) -> TrainSection:
        """As long as so many rounds."""
        train, times = self._training_of(node), self.federation.finetune_after
        length = {"steps": times * train.steps} if train.steps else {"epochs": times * train.epochs}
        # The views that are kept are those of the rounds.
        changed = {"lr": train.lr * self.federation.finetune_lr, "cache_views": 0}
        return train.model_copy(update={**length, **changed})

    @property
    def _tested_at(self) -> int:
        return self.evaluate.imgsz or self.plan.train.imgsz

    def close(self) -> None:
        """Nobody waits any more: say which updates came too late for the last round."""
        for asked, _ in self.came_late:
            self._tell_too_late(asked)
        self.came_late.clear()
        self._cancel_the_rest()
        # Who is still at work is asked for what comes after the rounds like the others.
        self.ledger.withdraw(asked.request_id for asked in self.ledger.overdue())

    def _cancel_the_rest(self) -> None:
        """No update is merged any more: what nobody has begun need not be."""
        overdue = [asked.request_id for asked in self.ledger.overdue()]
        self.ledger.withdraw(self.transport.cancel(overdue))

    def _tell_too_late(self, asked: Asked) -> None:
        reason = "came after the last round had been merged"
        self.emit("update_refused", round=self.federation.rounds, node=asked.node_id, reason=reason)

    def _cohort(self, round: int) -> tuple[str, ...]:
        """Who is asked: nobody who is still at work on an earlier request."""
        self._tell_given_up(self.ledger.give_up(round), round)
        if self.asynchronous:
            return self._unasked(round, self.federation.min_nodes)
        self._wait_for_busy(round)
        section = self.federation
        least = max(1, section.min_nodes - len(self.came_late))
        nodes = self._nodes(round)
        return sample_cohort(nodes, section.fraction, least, self.plan.seed, round, self.ledger.busy())

    def _unasked(self, round: int, least: int) -> tuple[str, ...]:
        """Who is given the model of an asynchronous round now, so that as many as a cohort has are at work.

        Whose update came and waits to be merged is not asked again before that: others would be merged ever later.
        """
        nodes = self._nodes(round)
        at_work = (self.ledger.at_work() | {asked.node_id for asked, _ in self.came_late}) & set(nodes)
        answered = {node for node, newest in self.asked_with.items() if newest == round}
        return sample_cohort(
            nodes,
            self.federation.fraction,
            least,
            self.plan.seed,
            round,
            at_work | answered,
            places_taken=len(at_work),
        )

    def _free(self, nodes: Sequence[str], *, over: bool) -> list[str]:
        """Who is asked for something other than an update: a busy node would come to it only when it is done.

        At the end of an asynchronous run some are always busy, and nothing is left that could not wait for them.
        """
        return sorted(set(nodes) - (frozenset() if over and self.asynchronous else self.ledger.busy()))

    def _testers(self, nodes: Sequence[str], number: int) -> Sequence[str]:
        most = self.evaluate.nodes
        if most is None or most >= len(nodes):
            return nodes
        # Another draw than that of any cohort.
        return sample_cohort(nodes, most / len(nodes), 1, self.plan.seed, number + self.federation.rounds)

    def _nodes(self, round: int) -> Sequence[str]:
        """Who can be reached now. From here on they have a part in the run."""
        nodes = self.transport.nodes()
        self.joined.note(nodes, round)
        return nodes

    def _wait_for_busy(self, round: int) -> None:
        """Wait until enough nodes are free for a round, at most one deadline long; then the busy ones are given up."""
        ends = self._deadline()
        while self._too_few_are_free():
            self._stop_if_asked(round)
            replies, over = self._receive(ends)
            for _ in self._in_time(replies, round):
                pass  # nothing is open between rounds, so none of them is
            if over:
                self._tell_given_up(self.ledger.give_up(round, also=self.ledger.busy()), round)

    def _too_few_are_free(self) -> bool:
        nodes = set(self.transport.nodes())
        busy = self.ledger.busy() & nodes
        return bool(busy) and len(nodes - busy) + len(self.came_late) < self.federation.min_nodes

    def _tell_given_up(self, given_up: Sequence[Asked], round: int) -> None:
        self.transport.cancel([asked.request_id for asked in given_up])
        for asked in given_up:
            reason = f"has not answered what it was asked in round {asked.round + 1}, and is asked anew"
            self.emit("warning", round=round + 1, node=asked.node_id, reason=reason)

    def _collect(self, state: RoundState, cohort: Sequence[str]) -> _Collected:
        """Ask the cohort to train and merge every good update as it arrives, those of earlier rounds, too."""
        section = self.federation
        exponent = section.staleness_exponent if self.merges_late else None
        merge = Merge(state.weights, section.weighting, exponent, normalises=self.strategy.normalises)
        collected = _Collected(merge)
        refused: dict[str, str] = {}
        absent: set[str] = set()
        self.gone.clear()
        number = state.round + 1
        control = self._control(state)
        requests = self._fit_requests(state, cohort, control)
        until = _Until(lambda: merge.num_updates >= section.min_nodes)
        if self.asynchronous:
            size = self._buffer_size(number)
            until = replace(until, full=lambda: merge.num_updates >= size, more=lambda: self._more(state, control))
        for asked, reply in self._ask(FIT, requests, state.round, until):
            staleness = state.round - asked.round
            try:
                update = self._read_update(reply, staleness, control)
                worth = self._worth(state.contributions, reply.node_id)
                merge.add(update, staleness, worth)
            except (ProtocolError, UpdateRefusedError) as error:
                refused[reply.node_id] = str(error)
                absent |= {reply.node_id} if reply.absent else set()
                late = self.merges_late and reply.node_id in self.ledger.busy()
                kind = "update_late" if late else "update_refused"
                self.emit(kind, round=number, node=reply.node_id, reason=str(error))
                continue
            collected.merged[reply.node_id] = max(asked.round, collected.merged.get(reply.node_id, 0))
            if self.judges_updates:
                collected.updates.append((reply.node_id, update, staleness, worth))
            self.emit(
                "update_received",
                round=number,
                node=reply.node_id,
                bytes=reply.bytes_up,
                num_examples=update.num_examples,
                seconds=round(time.monotonic() - asked.at, 3),
                metrics=update.metrics,
                **({"staleness": staleness} if staleness else {}),
                **({"weight": round(worth, 4)} if self.judges_updates else {}),
            )
        self._check_enough(collected, absent, refused, number)
        return collected

    def _worth(self, contributions: Mapping[str, float], node: str) -> float:
        return worths(contributions, [node], floor=self.federation.contribution_floor)[node]

    def _judge(self, state: RoundState, collected: _Collected, tested: _Tested) -> Mapping[str, float]:
        """Scores of the nodes after a round: each tester tests another model, in which one node counts for half."""
        number = state.round + 1
        if not self.judges_updates or len(collected.merged) < 2 or number == self.federation.rounds:
            return state.contributions
        pairs = judges(collected.merged, tested.scores, state.round)
        judged = {judge: node for node, judge in pairs.items()}
        plan = EvaluatePlan(split="val", imgsz=self._tested_at, round=number, personal=self.plan.personal)
        records: dict[str, Record] = {}
        gains: dict[str, float] = {}
        for judge, node in judged.items():
            try:
                records[judge] = evaluate_request(self._tilted(state, collected, node), plan, self.form_hash)
            except (UpdateRefusedError, RunError) as error:
                # What breaks the model as soon as it counts for more is of no use to anybody, and must end no run.
                reason = f"its update cannot count for half, so it is judged to be harmful: {error.reason}"
                self.emit("warning", round=number, node=node, reason=reason)
                gains[node] = -1.0
        for _, reply in self._ask(EVALUATE, records, state.round, name="tilted"):
            try:
                metrics = self._read_metrics(reply)
            except (ProtocolError, UpdateRefusedError) as error:
                reason = f"could not test the other model, to judge {judged[reply.node_id]}: {error}"
                self.emit("warning", round=number, node=reply.node_id, reason=reason)
                continue
            gains[judged[reply.node_id]] = metrics.map50 - tested.scores[reply.node_id]
        section = self.federation
        scores = updated(
            state.contributions,
            gains,
            {node: self._worth(state.contributions, judge) for judge, node in judged.items() if judge in records},
            smoothing=section.contribution_smoothing,
            scale=section.contribution_scale,
        )
        for node in sorted(gains):
            by = pairs[node] if pairs[node] in records else "coordinator"
            fields = {"gain": round(gains[node], 4), "weight": round(self._worth(scores, node), 4)}
            self.emit("contribution", round=number, node=node, by=by, **fields)
        return scores

    def _tilted(self, state: RoundState, collected: _Collected, node: str) -> Weights:
        """The round's model, had the node's updates counted for as much as all the others."""
        own = [(update, staleness, worth) for other, update, staleness, worth in collected.updates if other == node]
        return self._step(state, collected.merge.tilted(own))[0]

    def _buffer_size(self, number: int) -> int:
        """How many updates end this round; nodes come and go, so it is looked up in each."""
        count = len(self.transport.nodes())
        if count > self.buffer_checked_for:
            self.buffer_checked_for = count
            try:
                check_buffer(self.federation, count)
            except ConfigError as error:
                self.emit("warning", round=number, reason=str(error))
        return buffer_size(self.federation, count)

    def _more(self, state: RoundState, control: Weights) -> dict[str, Record]:
        """Requests to those who came free, or joined, while an asynchronous round is held."""
        nodes = self._unasked(state.round, 0)
        for node in nodes:
            self.emit("node_asked", round=state.round + 1, node=node)
        return self._fit_requests(state, nodes, control)

    def _read_update(self, reply: Reply, staleness: int, control: Weights) -> Update:
        most = self.federation.max_staleness
        if staleness > most:
            raise UpdateRefusedError(f"came {staleness} rounds late, and at most {most} are merged (max_staleness)")
        return read_update(
            _record_of(reply),
            self.template.weights,
            self.delta_names,
            self.buffer_names,
            control.keys(),
            step_sum=self.plan.tell_step_sum,
        )

    def _control(self, state: RoundState) -> Weights:
        """The server's control variate; who once took part counts even if it cannot be reached now."""
        nodes = {*state.last_merged, *self.transport.nodes()}
        trained = state.weights.select(self.delta_names.__contains__)
        return self.strategy.control(trained, state.strategy, len(nodes))

    def _fit_requests(self, state: RoundState, cohort: Sequence[str], control: Weights) -> dict[str, Record]:
        kept = state.best.round if state.best else None
        plan = self.plan.model_copy(update={"round": state.round, "kept": kept})
        of_node = {
            node: {
                "node_id": node,
                "train": self._training_of(node),
                "last_merged": state.last_merged.get(node, -1),
            }
            for node in cohort
        }
        return {
            node: fit_request(state.weights, plan.model_copy(update=update), self.form_hash, control)
            for node, update in of_node.items()
        }

    def _check_enough(
        self, collected: _Collected, absent: Collection[str], refused: Mapping[str, str], number: int
    ) -> None:
        good, least = collected.merge.num_updates, self.federation.min_nodes
        if good >= least:
            return
        silent = {
            asked.node_id: f"has not answered what it was asked in round {asked.round + 1}"
            for asked in self.ledger.overdue()
        }
        reasons = {
            node: why for node, why in {**silent, **self.gone, **refused}.items() if node not in collected.merged
        }
        may_come = {*silent, *self.gone, *absent} - collected.merged.keys()
        kind = AbsentNodesError if good + len(may_come) >= least else RunError
        raise kind(
            f"round {number} got {good} good updates and needs at least {least}: "
            + "; ".join(f"{node}: {reason}" for node, reason in sorted(reasons.items())),
            key="federation.min_nodes",
            cure=f"Mend these nodes and resume: everything up to round {number - 1} is kept.",
        )

    def _step(self, state: RoundState, merge: Merge) -> tuple[Weights, Mapping[str, Any]]:
        mean = merge.result()
        # What overflows here is found and named right after.
        with np.errstate(over="ignore", invalid="ignore"):
            weights, strategy_state = self.strategy.step(state.weights, mean, state.strategy)
        weights = weights.replace(mean.buffers)
        try:
            check_finite(weights, what="the merged model")
        except UpdateRefusedError as error:
            raise RunError(
                f"round {state.round + 1} diverged: {error.reason}",
                cure=f"Lower federation.strategy.server_lr; everything up to round {state.round} is kept.",
            ) from error
        return weights, strategy_state

    def _evaluate(self, weights: Weights, number: int) -> _Tested:
        """Ask every node to test the new global model on its validation pictures, and test it on those held out."""
        plan = EvaluatePlan(split="val", imgsz=self._tested_at, round=number, personal=self.plan.personal)
        record = evaluate_request(weights, plan, self.form_hash)
        nodes = self._nodes(max(number - 1, 0))
        free = self._free(nodes, over=number == self.federation.rounds)
        records = dict.fromkeys(self._testers(free, number), record)
        scores: dict[str, float] = {}
        answered = 0
        for _, reply in self._ask(EVALUATE, records, number - 1):
            try:
                metrics = self._read_metrics(reply)
            except (ProtocolError, UpdateRefusedError) as error:
                self.emit("warning", round=number, node=reply.node_id, reason=f"could not test the model: {error}")
                continue
            answered += 1
            if metrics.ap50:
                scores[reply.node_id] = metrics.map50
            self.emit("evaluated", round=number, where=reply.node_id, split="val", metrics=metrics.to_dict())
        if self.held_out:
            metrics = self.held_out(weights)
            self.emit("evaluated", round=number, where="mixed", split="val", metrics=metrics.to_dict())
        return _Tested(scores, complete=answered == len(nodes))

    def _read_metrics(self, reply: Reply) -> Metrics:
        return read_metrics(_record_of(reply), self.template.weights, self.template.names)

    def _ask(
        self,
        kind: str,
        records: Mapping[str, Record],
        round: int,
        until: _Until | None = None,
        *,
        times: int = 1,
        name: str | None = None,
    ) -> Iterator[tuple[Asked, Reply]]:
        """Every node's answer as it comes; a node that gave none until `times` deadlines yields the reason instead.

        `name` tells requests apart that are of one kind and one round.

        Late updates of earlier rounds are yielded among the answers to FIT, if they are merged at all. Then the
        deadline is put off, too, for as long as there are not enough: an update that is welcome late is worth that.
        """
        until = until or _Until()
        ends = self._deadline(times)
        self._send(kind, records, round, name)
        replies: list[Reply] = []
        over = None
        put_off, most = 0, self.federation.max_staleness if self.merges_late else 0
        while self._expects(kind) and not over:
            if kind == FIT:
                yield from self._take_late(until)
                if until.full():
                    break
                self._send(kind, until.more(), round)
            self._stop_if_asked(max(round, 0))
            replies, over = self._receive(ends)
            if over not in (None, _NOTHING_PENDING) and put_off < most and not until.enough():
                put_off, over, ends = put_off + 1, None, self._deadline()
                self._tell_put_off(round)
            if not over:
                yield from self._in_time(replies, round)
                if put_off and until.enough():
                    ends = time.monotonic()
        if kind == FIT:
            yield from self._take_late(until)
        if until.full():
            # Nobody is late: they are at work, and what they send is merged in the round in which it comes.
            self.ledger.expire()
        elif over:
            for asked in self._expire(over):
                yield asked, Reply(asked.request_id, asked.node_id, None, error=over, absent=True)
            yield from self._in_time(replies, round)

    def _send(self, kind: str, records: Mapping[str, Record], round: int, name: str | None = None) -> None:
        prefix = f"{self.token}-{round + 1}-{name or kind}"
        requests = [Request(f"{prefix}-{node}", node, kind, record) for node, record in records.items()]
        at = time.monotonic()
        self.ledger.ask(Asked(request.request_id, request.node_id, kind, round, at) for request in requests)
        if kind == FIT:
            self.asked_with |= dict.fromkeys(records, round)
        if requests:
            self.transport.send(requests)

    def _expects(self, kind: str) -> bool:
        """Whether answers may come that are waited for; in an asynchronous round those to earlier ones, too."""
        return self.ledger.any_open or (self.asynchronous and kind == FIT and bool(self.ledger.busy()))

    def _tell_put_off(self, round: int) -> None:
        waiting = ", ".join(sorted(self.ledger.at_work()))
        reason = f"fewer updates than federation.min_nodes at the deadline; waiting on for {waiting}"
        self.emit("warning", round=round + 1, reason=reason)

    def _deadline(self, times: int = 1) -> float | None:
        """When the time of what is asked now is up, on the monotonic clock."""
        return None if self.federation.deadline is None else time.monotonic() + times * self.federation.deadline

    def _receive(self, ends: float | None) -> tuple[list[Reply], str | None]:
        """What came, and the reason if it is too late or no more will come."""
        began = time.monotonic()
        up = f"no answer within {self.federation.deadline or 0:g} s"
        wait = _POLL if ends is None else min(_POLL, ends - began)
        if wait <= 0:
            return [], up
        replies = self.transport.receive(wait)
        now = time.monotonic()
        for reply in replies:
            self.bytes_up += reply.bytes_up
            self.bytes_down += reply.bytes_down
            of_node = self.bytes_of.setdefault(reply.node_id, {"bytes_down": 0, "bytes_up": 0})
            of_node["bytes_down"] += reply.bytes_down
            of_node["bytes_up"] += reply.bytes_up
        if ends is not None and now > ends:
            return replies, up
        # A transport that returns nothing well before the time is up has nothing pending (see Transport.receive).
        return replies, _NOTHING_PENDING if not replies and now - began < wait / 2 else None

    def _in_time(self, replies: Sequence[Reply], round: int) -> Iterator[tuple[Asked, Reply]]:
        """The first answers to open requests. Late ones are put aside to be merged, or refused aloud like the rest.

        Updates of asynchronous rounds are put aside in any case: how many are merged in one does not depend on how
        many come at the same moment.
        """
        for reply in replies:
            try:
                asked = self.ledger.answer(reply.request_id, reply.node_id)
            except ProtocolError as error:
                self.emit("update_refused", round=round + 1, node=reply.node_id, reason=str(error))
                continue
            aside = asked.late or (self.asynchronous and asked.kind == FIT and reply.record is not None)
            if not aside:
                yield asked, reply
            elif asked.kind == FIT and self.merges_late and reply.record is not None:
                self.came_late.append((asked, reply))
            else:
                reason = reply.error or f"answered what it was asked in round {asked.round + 1} after the deadline"
                kind = "update_refused" if asked.kind == FIT else "warning"
                self.emit(kind, round=round + 1, node=reply.node_id, reason=reason)
                if reply.absent:
                    self.gone[reply.node_id] = reason

    def _take_late(self, until: _Until) -> Iterator[tuple[Asked, Reply]]:
        while self.came_late and not until.full():
            yield self.came_late.pop(0)

    def _expire(self, over: str) -> list[Asked]:
        """What was not answered; its nodes are busy from now on, unless they will never answer."""
        missing = self.ledger.expire()
        if over == _NOTHING_PENDING:
            self.ledger.withdraw(asked.request_id for asked in self.ledger.overdue())
        else:
            useless = [a.request_id for a in missing if a.kind != FIT or not self.merges_late]
            self.ledger.withdraw(self.transport.cancel(useless))
        return missing

    def _stop_if_asked(self, finished: int) -> None:
        signal = self.stop()
        if signal is not None:
            raise Interrupted(
                signal,
                cure=f"{finished} of {self.federation.rounds} rounds are finished and kept;"
                " run the same command with --resume to go on.",
            )


def settings_of(
    template: Template, train: TrainSection, federation: FederationSection, evaluate: EvaluateSection, seed: int
) -> dict[str, Any]:
    """What the resulting bits depend on, JSON-ready; where and how fast it is computed is left out."""
    rounds = federation.model_dump(
        mode="json", include={"rounds", "fraction", "min_nodes", "strategy", "weighting", "personal", "keep"}
    )
    if federation.per_node:
        rounds |= federation.model_dump(mode="json", include={"per_node"}, exclude_none=True)
    if federation.weighting == "contribution":
        rounds |= federation.model_dump(
            mode="json", include={"contribution_smoothing", "contribution_scale", "contribution_floor"}
        )
    if federation.mode == "async":
        rounds |= federation.model_dump(mode="json", include={"mode", "buffer", "staleness_exponent", "max_staleness"})
    if federation.finetune_after:
        rounds |= federation.model_dump(mode="json", include={"finetune_after", "finetune_lr", "finetune_mix"})
    model = {
        "architecture": template.architecture,
        "names": list(template.names),
        "weights": template.weights.value_hash,
    }
    trained = train.model_dump(mode="json", exclude={"device", "threads"})
    settings = {"seed": seed, "model": model, "train": trained, "federation": rounds}
    if federation.simulation.nodes:
        rounds |= {"simulation": federation.simulation.model_dump(mode="json", exclude={"processes"})}
    if federation.keep == "best":
        settings["evaluate"] = evaluate.model_dump(mode="json", include={"every", "imgsz"})
    return settings


@dataclass(frozen=True, slots=True)
class _Collected:
    """The updates of a round.

    Attributes:
        merge: their running mean.
        merged: whose they are, with the index of the round each was made in.
        updates: node, update, staleness and worth of each, if their worth is judged; else empty, since the mean is all
            that is needed and takes no more memory however many there are.
    """

    merge: Merge
    merged: dict[str, int] = field(default_factory=dict)
    updates: list[tuple[str, Update, int, float]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Tested:
    """How the nodes found a model.

    Attributes:
        scores: mAP50 by node, of those that have validation pictures with objects.
        complete: whether every node gave an answer.
    """

    scores: Mapping[str, float]
    complete: bool

    @property
    def score(self) -> float | None:
        """Mean over the nodes; None if a node gave no answer: means over other sites are not comparable."""
        return fmean(self.scores.values()) if self.scores and self.complete else None


@dataclass(frozen=True, slots=True)
class _Until:
    """How long answers are waited for.

    Attributes:
        enough: whether there are so many that a deadline need not be put off.
        full: whether there are so many that the others are left to later rounds.
        more: requests to those who have come free meanwhile.
    """

    enough: Callable[[], bool] = lambda: True
    full: Callable[[], bool] = lambda: False
    more: Callable[[], Mapping[str, Record]] = dict


class _Stopwatch:
    """Seconds of each part of a round, on the monotonic clock."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._began = self._last = time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.laps[name] = round(now - self._last, 3)
        self._last = now

    def total(self) -> float:
        return time.monotonic() - self._began


def _shared_names(template: Template, plan: FitPlan, expected: Expected) -> tuple[frozenset[str], frozenset[str]]:
    """Names of the trained tensors and buffers that leave a node."""
    trained, buffers = expected(plan)
    if unknown := sorted((trained | buffers) - template.weights.keys()):
        raise WeightsError(f"the learner expects updates of tensors the template lacks: {', '.join(unknown[:3])}")
    personal = expand_personal(plan.personal, template.weights)
    if not trained - personal:
        raise ConfigError(
            "every trained tensor stays at the node, so there is nothing to learn together",
            key="federation.personal",
            cure="Name fewer tensors, or freeze fewer layers.",
        )
    return trained - personal, buffers - personal


def _record_of(reply: Reply) -> Record:
    if reply.record is None:
        raise UpdateRefusedError(reply.error or "an empty answer")
    return reply.record
