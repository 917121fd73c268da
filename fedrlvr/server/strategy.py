"""The server's loop over rounds: it asks clients, aggregates their replies, and saves the result.

Flower's own `start()` can neither resume nor exchange anything between synchronisations, so `start()` is ours; the
hooks it calls are Flower's, so a strategy that wraps another still wraps this one.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedrlvr.adapter import Adapter
from fedrlvr.aggregation import RULES
from fedrlvr.config import Config
from fedrlvr.errors import CheckpointError, MessageError, RoundError
from fedrlvr.reporting.observer import Observer, PhaseStarted, RoundEnded, RoundSaved, RoundStarted
from fedrlvr.server.aggregator import Combiner, global_model
from fedrlvr.server.change_bound import ChangeBound
from fedrlvr.server.checkpoint import Checkpoint, Checkpoints
from fedrlvr.server.exchange import Exchange, PublicSet, trade
from fedrlvr.server.kept_adapters import Kept, KeptAdapters
from fedrlvr.server.metrics_log import RoundRecord
from fedrlvr.server.participation import Participation, Reply
from fedrlvr.server.shared_probes import SharedProbes
from fedrlvr.wire.compression import unpack
from fedrlvr.wire.messages import (
    ARRAYS,
    UNCHANGED,
    EvaluateRequest,
    SourceScores,
    TrainRequest,
    adapter_to_arrays,
    arrays_to_adapter,
    read_calibrations,
    read_numbers,
    read_scores,
    record_in,
    says_unchanged,
)


class FederatedRLVR(Strategy):
    """Rounds of local GRPO, public exchanges if the config has them, and one aggregation.

    clients: the organisations by Flower node id. public: what exchanges are about; needed only for them.
    probes: how many numbers a client's probes are; needed only where they are shared.
    """

    def __init__(
        self,
        config: Config,
        clients: Mapping[int, str],
        adapter: Adapter,
        observer: Observer,
        public: PublicSet | None = None,
        probes: int | None = None,
    ) -> None:
        self.config = config
        self.clients = clients
        self.public = public
        step = config.aggregation.server_step(config)
        self.combiner = Combiner(
            config.aggregation,
            step=step,
            verified=config.supervision.type != "labels",
            problems=config.train.local_steps * config.train.problems_per_step,
        )
        self.bound = ChangeBound(config.aggregation.change_bound)
        self.probes = SharedProbes.of(config, probes)
        self.model = global_model(config.aggregation, adapter, config.run.seed, config.personal.method)
        self.observer = observer
        self.participation = Participation(config, clients, self.model, self.probes, observer)
        self.exchange: Exchange | None = None
        """The round's last exchange."""
        self.examples: dict[str, int] = {}
        """Training problems of the clients whose adapters are taken in this round."""
        self._aggregate: ArrayRecord | None = None

    @property
    def record(self) -> RoundRecord:
        """The record of the round under way."""
        return self.participation.record

    @property
    def adapter(self) -> Adapter:
        """The global adapter, of the largest rank."""
        return self.model.adapter

    # The hooks, in the order a round calls them.

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The round's clients, drawn by seed, and one `train` message for each.

        After exchanges it brings the last one's share; local steps are done, and the clients have their adapters.
        """
        local = self.config.federation.arm == "local"
        exchange = self.exchange
        request = self.participation.request(
            TrainRequest,
            server_round,
            steps=0 if exchange else self.config.train.local_steps,
            own_adapter=local,
            coordination=exchange.coordination if exchange else None,
        )
        for node in self.participation.drawn(server_round, grid):
            body = self.participation.content(request, node, None if local or exchange else arrays)
            if exchange:
                exchange.put_share(body, self.clients[node])
            yield Message(body, node, MessageType.TRAIN, group_id=str(server_round))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Check every reply, weight the clients, and aggregate their adapters.

        A client whose reply cannot be used is left out, if the quorum allows it.

        Raises:
            RoundError: a client failed, or too few are left.
            MessageError, AdapterError: a reply that cannot be used; the text names client and round.
        """
        self.examples = {}
        self.probes.begin()
        self.bound.begin()
        self.record.privacy = self.config.privacy.spent(self.config.train.rounds, server_round)
        taken = self.participation.accepted(server_round, replies, self._trained)
        result = None
        if self.config.federation.arm == "local":
            for _ in taken:
                pass
        else:
            result = self.combiner.combine(taken, self.examples, self.model, self.record, self._leave_out)
        if not self.examples and not self.record.withheld:
            raise RoundError(f"round {server_round}: no client answered")
        if self.exchange:
            self.exchange.end(self.record, self.observer)
            self.record.sum_exchanges()
            self.exchange = None
        if result is None:
            return None, None
        self.model.advance(result, server_round)
        self.probes.end()
        self.bound.end()
        self._aggregate = adapter_to_arrays(self.adapter, self.model.halves)
        return self._aggregate, None

    def _trained(self, reply: Reply) -> tuple[str, Adapter]:
        """A client and its adapter; in the arm `local`, where none travels, the adapter the run began with.

        Raises:
            MessageError, AdapterError: a reply that cannot be used.
        """
        client, place, message = reply.client, reply.place, reply.message
        numbers = read_numbers(message, place=place)
        calibrations = read_calibrations(message, place=place)
        adapter = self._adapter_in(reply)
        probes = self.probes.read(message, place)
        self.combiner.check_numbers(numbers, place=place)
        if self.exchange:
            self.exchange.took(client, message.content)
        # Everything that can fail has been done: a client that is left out has left no number behind.
        examples = self.participation.problems(client, "train", numbers["num-examples"])
        numbers["num-examples"] = self.examples[client] = examples
        self.probes.add(client, probes, self.examples[client])
        self.model.took(client, adapter)
        self.record.client(client).update(numbers)
        self.record.calibrations[client] = calibrations
        return client, adapter

    def _adapter_in(self, reply: Reply) -> Adapter:
        rank = self.participation.rank(reply.client)
        start = self.model.start_of(rank, reply.client)
        if self.config.federation.arm == "local":
            return start
        received = self.model.received_by(reply.client, rank)
        content, sends = reply.message.content, self.model.sends(reply.round)
        arrays = record_in(content, ARRAYS, ArrayRecord)
        if UNCHANGED in content and says_unchanged(
            content, sent := adapter_to_arrays(received, sends), place=reply.place
        ):
            arrays = sent
        if arrays is None:
            raise MessageError(f"{reply.place}: a train reply without an adapter")
        halves, precision = sends, self.config.aggregation.number_format
        if precision == "float32" or f"{halves[0]}.{start.layout}" in arrays:  # what cannot be rounded comes as it is
            adapter = arrays_to_adapter(arrays, received, place=reply.place, halves=halves)
            if received is not start:  # what the client changed is what it received
                adapter = adapter.rebased(received, start)
        else:
            adapter = unpack(arrays, start, precision=precision, halves=halves, place=reply.place)
        self.bound.check(adapter, start, place=reply.place)
        return adapter

    def _with_adapter(self, message: Message) -> Message:
        """A reply with an adapter in place of the note that it is unchanged, for a strategy around this one.

        A note that may not stand is refused where our own strategy reads the reply.
        """
        client = self.participation.clients.get(message.metadata.src_node_id)
        if client is not None and message.has_content() and UNCHANGED in message.content:
            start = self.model.start_of(self.participation.rank(client), client)
            arrays = adapter_to_arrays(start, self.model.sends(self.record.round))
            with contextlib.suppress(MessageError):
                says_unchanged(message.content, arrays, place=client)
                del message.content[UNCHANGED]
                message.content[ARRAYS] = arrays
        return message

    def _leave_out(self, client: str, reason: str) -> None:
        error = RoundError(f"round {self.record.round}, {client}: {reason}")
        self.participation.leave_out(client, error)
        del self.examples[client]
        self.probes.leave_out(client)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """An `evaluate` message for every client, in the rounds that are due."""
        every, last = self.config.evaluate.every, self.config.train.rounds
        if server_round not in (0, last) and (not every or server_round % every):
            return
        if self.config.privacy.withholds_scores:
            return
        local = self.config.federation.arm == "local"
        request = EvaluateRequest(
            round=server_round,
            seed=self.config.run.seed,
            own_adapter=local,
            personal=self.config.personal.method.keeps is not None and server_round == last,
            sampling=self.config.sampling,
            evaluate=self.config.evaluate,
            held_out_loss=self.config.supervision.type == "demonstrations",
        )
        for node in self.participation.present(grid.get_node_ids()):
            body = self.participation.content(request, node, None if local else arrays)
            yield Message(body, node, MessageType.EVALUATE, group_id=str(server_round))

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Collect every client's scores by source; they are written with the round.

        Raises:
            RoundError, MessageError: as `aggregate_train`.
        """
        for client, numbers, scores in self.participation.accepted(server_round, replies, self._evaluated):
            self.record.client(client)["seconds_evaluate"] = numbers.get("seconds_evaluate", 0.0)
            if (loss := numbers.get("held_out_loss")) is not None:
                self.record.client(client)["held_out_loss"] = loss
            self.record.scores[client] = scores
        return None

    def _evaluated(self, reply: Reply) -> tuple[str, dict[str, float], list[SourceScores]]:
        client, place, message = reply.client, reply.place, reply.message
        numbers, scores = read_numbers(message, place=place), read_scores(message, place=place)
        declared = self.participation.problems(client, self.config.evaluate.split, numbers["num-examples"])
        if (n := sum(score.n for score in scores)) > declared:
            raise MessageError(f"{place}: scores of {n} problems, where the client has declared {declared}")
        return client, numbers, scores

    def summary(self) -> None:
        """Print nothing: the command line describes the run before it starts."""

    def state(self) -> dict[str, Any]:
        """State between rounds besides the model, as a JSON object for the checkpoint."""
        bounds = {"declared": self.participation.declared, "usual_change": self.bound.usual}
        return {**self.model.state(), **self.combiner.state(), **bounds}

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on after a round that was checkpointed.

        Raises:
            CheckpointError: its state is none of this strategy.
        """
        state = checkpoint.strategy
        try:
            self.combiner.load(state)
            self.combiner.rule.load_state(checkpoint.rule)
            if self.combiner.step is not None:
                self.combiner.step.load_state(checkpoint.step)
            self.model.restore(checkpoint)
            self.bound.usual = float(state.get("usual_change", 0.0))
            for part, counts in state.get("declared", {}).items():
                self.participation.declared[part] |= {str(client): int(count) for client, count in counts.items()}
        except (AttributeError, LookupError, TypeError, ValueError, OverflowError) as error:
            raise CheckpointError(f"the checkpoint's state of the strategy cannot be used ({error})") from None
        self.probes.restore(checkpoint.probes)

    # The loop.

    def start(  # type: ignore[override]
        self,
        grid: Grid,
        checkpoints: Checkpoints,
        *,
        first_round: int = 0,
        timeout: float = 3600.0,
        hooks: Strategy | None = None,
    ) -> Adapter:
        """Run the rounds from `first_round` on; returns the adapter after the last one.

        hooks: a Flower strategy that wraps this one (differential privacy, say) and is called in its place.

        Round 0 trains nothing: the starting adapter is evaluated and checkpointed. After each round its line
        of metrics.jsonl, the clients' memories and the checkpoint are written, in this order, so that a run killed at
        any moment goes on from the last round whose checkpoint is there.
        """
        hooks = hooks or self
        ask = self.participation.ask
        arrays = adapter_to_arrays(self.adapter, self.model.halves)
        nothing = ConfigRecord()
        for round_ in range(first_round, self.config.train.rounds + 1):
            self.participation.record = RoundRecord(round_)
            self.observer.notify(RoundStarted(round_))
            if round_:
                self.observer.notify(PhaseStarted(round_, "train"))
                if self.public is not None:
                    self.exchange = trade(self.config, self.public, self.participation, arrays, grid, timeout)
                replies = ask(grid, hooks.configure_train(round_, arrays, nothing, grid), timeout)
                with self._timed_aggregation():
                    whole = replies if hooks is self else map(self._with_adapter, replies)
                    new_arrays, _ = hooks.aggregate_train(round_, whole)
                    if new_arrays is not None:
                        arrays = new_arrays
                        if arrays is not self._aggregate:  # what a wrapper made of our result is what everybody gets
                            self._replace_aggregate(arrays, round_)
            self.observer.notify(PhaseStarted(round_, "evaluate"))
            replies = ask(grid, hooks.configure_evaluate(round_, arrays, nothing, grid), timeout)
            hooks.aggregate_evaluate(round_, replies)
            self.observer.notify(PhaseStarted(round_, "checkpoint"))
            if self.combiner.kept:
                weights = {client: self.record.client(client)["weight"] for client in self.combiner.kept}
                rate = float(self.record.server_step.get("learning_rate", 1.0))
                KeptAdapters(checkpoints.run).save(round_, Kept(self.combiner.kept, weights, rate))
                self.combiner.kept = {}
            record = self.record.to_json()
            self.observer.notify(RoundEnded(round_, record))  # which writes the line of metrics.jsonl
            checkpoints.save(self._checkpoint(round_))
            self.observer.notify(RoundSaved(round_, record))
        return self.adapter

    def _checkpoint(self, round_: int) -> Checkpoint:
        rule, step = self.combiner.rule.state(), self.combiner.step
        kept = {} if step is None else step.state()
        return Checkpoint(round_, self.adapter, self.state(), self.model.updates(), self.probes.average, rule, kept)

    @contextlib.contextmanager
    def _timed_aggregation(self) -> Iterator[None]:
        """Record the seconds of aggregation, without the wait for the replies, which come while it goes on."""
        seconds = self.record.seconds
        started, waited = time.perf_counter(), seconds.get(MessageType.TRAIN, 0.0)
        yield
        waited = seconds.get(MessageType.TRAIN, 0.0) - waited
        seconds["aggregate"] = time.perf_counter() - started - waited

    def _replace_aggregate(self, arrays: ArrayRecord, round_: int) -> None:
        rule = self.model.rule
        if not rule.is_linear or rule.alternates:
            others = " or ".join(repr(r.name) for r in RULES.values() if r.is_linear and not r.alternates)
            raise RoundError(
                f"round {round_}: a strategy around this one changed the aggregate, which aggregation.type = "
                f"{rule.name!r} has no place for; use {others} with it"
            )
        if self.combiner.step is not None:
            raise RoundError(
                f"round {round_}: a strategy around this one changed the aggregate, and its noise or clipping does not "
                "count the length of the server's step; use aggregation.server_learning_rate = 1 and "
                "aggregation.server_optimizer = 'sgd' with it"
            )
        halves = self.model.halves
        place = f"round {round_}, the aggregate"
        self.model.replace(arrays_to_adapter(arrays, self.adapter, place=place, halves=halves))


class WrappingStrategy(Strategy):
    """A strategy around ours that changes nothing, to derive from: overwrite the hook whose messages are to be changed.

    `Federation(..., wrap=...)` and `sweep(..., wrap=...)` take what makes one.
    """

    def __init__(self, inner: FederatedRLVR) -> None:
        self.inner = inner

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Make the training messages of a round, as the inner strategy does."""
        return self.inner.configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Aggregate the replies of a round's training, as the inner strategy does."""
        return self.inner.aggregate_train(server_round, replies)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Make a round's messages for evaluation, as the inner strategy does."""
        return self.inner.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Sum up the scores of an evaluation, as the inner strategy does."""
        return self.inner.aggregate_evaluate(server_round, replies)

    def summary(self) -> None:
        """Log a summary of the strategy, as the inner one does."""
        self.inner.summary()
