"""The server's side of a federation: whom to ask, what to make of the answers, when to write it down.

Flower's own `start()` can neither resume nor exchange anything between synchronisations, so `start()` is ours; the
hooks it calls are Flower's, so a strategy that wraps another still wraps this one.
"""

from __future__ import annotations

import contextlib
import logging
import math
import random
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedrlvr.adapter import Adapter
from fedrlvr.aggregation import RULES
from fedrlvr.config import Config, PubSwapCoordination
from fedrlvr.coordination import stretches
from fedrlvr.errors import CheckpointError, FedrlvrError, MessageError, RoundError
from fedrlvr.reporting.observer import (
    ClientLeftOut,
    ExchangeEnded,
    Observer,
    PhaseStarted,
    RoundEnded,
    RoundSaved,
    RoundStarted,
)
from fedrlvr.seeds import stream
from fedrlvr.server.aggregator import Combiner, global_model
from fedrlvr.server.checkpoint import Checkpoint, Checkpoints
from fedrlvr.server.exchange import Exchange, PublicSet
from fedrlvr.server.metrics_log import RoundRecord
from fedrlvr.server.shared_probes import SharedProbes
from fedrlvr.wire.compression import unpack
from fedrlvr.wire.messages import (
    ARRAYS,
    EvaluateRequest,
    Request,
    RespondRequest,
    SourceScores,
    StretchRequest,
    TrainRequest,
    adapter_to_arrays,
    arrays_to_adapter,
    content,
    nbytes,
    read_calibrations,
    read_numbers,
    read_scores,
    record_in,
)
from fedrlvr.wire.public_messages import PUBLIC, RESPOND, SHARE, problems_record

_log = logging.getLogger("fedrlvr.server")

R = TypeVar("R", bound=StretchRequest)

MOST_REASON = 500
"""Characters kept of why a client was left out: part of it may be the client's own words."""


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
        self.public = public
        self.combiner = Combiner(config.aggregation, verified=config.supervision.type != "labels")
        self.probes = SharedProbes.of(config, probes)
        self.exchange: Exchange | None = None
        self.examples: dict[str, int] = {}
        """Of the clients whose adapters are taken in this round."""
        self.asked = 0
        """Clients that were asked in this phase of the round; the quorum is of them."""
        self.clients = clients
        self.model = global_model(config.aggregation, adapter, config.run.seed)
        self.observer = observer
        self.record = RoundRecord(0)
        self._made: ArrayRecord | None = None

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
        last = self.exchange
        request = self._request(
            TrainRequest,
            server_round,
            steps=0 if last else self.config.train.local_steps,
            own_adapter=local,
            coordination=last.coordination if last else None,
        )
        for node in self._present(server_round, grid):
            body = self._body(request, node, None if local or last else arrays)
            if last and (share := last.share(self.clients[node])) is not None:
                body[SHARE] = share
            yield Message(body, node, MessageType.TRAIN, group_id=str(server_round))

    def _request(self, kind: type[R], round_: int, steps: int, **more: Any) -> R:
        """A request for training, with what every such request of this run asks.

        more: the fields that are this kind's own.
        """
        config = self.config
        return kind(
            round=round_,
            seed=config.run.seed,
            sampling=config.sampling,
            steps=steps,
            train=config.train,
            supervision=config.supervision,
            trains=self.model.rule.trains(round_),
            precision=config.aggregation.precision,
            feedback=not self.model.rule.new_components,
            **more,
        )

    def _body(self, request: Request, node: int, arrays: ArrayRecord | None) -> RecordDict:
        """A request to a client; with arrays it brings the client what it lacks of the global model."""
        if arrays is None:
            return content(request)
        client = self.clients.get(node, "")  # a stranger's reply is refused
        body = content(request, **self.model.bring(client, self._rank(client), arrays))
        if isinstance(request, StretchRequest):
            self.probes.bring(body)
        return body

    def _rank(self, client: str) -> int:
        ranks = self.config.lora.rank
        return ranks[client] if isinstance(ranks, dict) and client in ranks else self.adapter.rank

    def _chosen(self, server_round: int, grid: Grid) -> list[int]:
        """The nodes that take part in a round."""
        nodes = sorted(grid.get_node_ids())
        count = max(1, math.floor(self.config.federation.fraction * len(nodes) + 0.5))
        return sorted(random.Random(stream(self.config.run.seed, "clients", server_round)).sample(nodes, count))

    def _present(self, server_round: int, grid: Grid) -> list[int]:
        """The nodes that take part in a round and have not been left out of it."""
        chosen = self._chosen(server_round, grid)
        self.asked = len(chosen)
        return [node for node in chosen if self.clients.get(node) not in self.record.left_out]

    def exchange_public(self, server_round: int, arrays: ArrayRecord, grid: Grid, timeout: float) -> None:
        """The round's local steps with an exchange after each stretch of them; what the last one gave is left for
        `configure_train`. Not a hook: Flower's strategies know nothing of it, so none needs to wrap it.

        Raises:
            RoundError: a client failed.
            GradingError: a public problem cannot be graded.
        """
        coordination = self.config.coordination
        if not isinstance(coordination, PubSwapCoordination) or self.public is None:
            return
        last: Exchange | None = None
        for number, steps in enumerate(stretches(self.config.train.local_steps, coordination.exchanges), start=1):
            nodes = self._present(server_round, grid)
            now = Exchange(self.config, self.public, server_round, number, [self.clients[node] for node in nodes])
            request = self._request(
                RespondRequest, server_round, steps, coordination=coordination, exchange=number, send=now.trades
            )
            messages = []
            for node in nodes:
                client = self.clients[node]
                body = self._body(request, node, arrays if number == 1 else None)
                body[PUBLIC] = problems_record(now.problems, last.notices.get(client, "") if last else "")
                now.count_down(client, RecordDict({PUBLIC: body[PUBLIC]}))
                if last and (share := last.share(client)) is not None:
                    body[SHARE] = share
                messages.append(Message(body, node, RESPOND, group_id=str(server_round)))
            replies = {}
            for reply in self._ask(grid, messages, timeout):
                client, whose = self._whose(reply, server_round)
                with self._or_left_out(client):
                    _check_answered(reply, whose)
                    self.model.answered(client)
                    replies[client] = reply.content
                    if last and client in last.numbers:
                        last.took(client, reply.content)
            now.receive(replies)
            if last:
                self._exchange_ended(last)
            last = now
        self.exchange = last

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Check every reply, weigh the clients, make one adapter of theirs.

        A client whose reply cannot be used is left out, if the quorum allows it.

        Raises:
            RoundError: a client failed, or too few are left.
            MessageError, AdapterError: a reply that cannot be used; the text names client and round.
        """
        self.examples = {}
        self.probes.begin()
        taken = self._taken(server_round, replies)
        result = None
        if self.config.federation.arm == "local":
            for _ in taken:
                pass
        else:
            result = self.combiner.combine(taken, self.examples, self.model, self.record, self._leave_out)
        if not self.examples:
            raise RoundError(f"round {server_round}: no client answered")
        if self.exchange:
            self._exchange_ended(self.exchange)
            self.record.sum_exchanges()
            self.exchange = None
        if result is None:
            return None, None
        self.model.advance(result, server_round)
        self.probes.end()
        self._made = adapter_to_arrays(self.adapter, self.model.halves)
        return self._made, None

    def _exchange_ended(self, exchange: Exchange) -> None:
        record = exchange.to_json()
        self.record.exchanges.append(record)
        self.observer.notify(ExchangeEnded(self.record.round, record))

    def _taken(self, server_round: int, replies: Iterable[Message]) -> Iterator[tuple[str, Adapter]]:
        """Clients whose replies can be used and their adapters, as they come; in the arm `local`, where none travels,
        the adapter the run began with."""
        for reply in replies:
            client, whose = self._whose(reply, server_round)
            if client in self.examples or client in self.record.left_out:
                _log.warning("%s: a second reply, which does not count", whose)
                continue
            taken = None
            with self._or_left_out(client):
                _check_answered(reply, whose)
                self.model.answered(client)
                numbers = read_numbers(reply, whose=whose)
                calibrations = read_calibrations(reply, whose=whose)
                adapter = self._adapter_in(reply, server_round, client, whose)
                probes = self.probes.read(reply, whose)
                if self.combiner.fgrpo and not self.combiner.verified and "reward" not in numbers:
                    raise MessageError(f"{whose}: a train reply without a mean reward")
                self.examples[client] = int(numbers["num-examples"])
                self.probes.add(client, probes, self.examples[client])
                self.record.client(client).update(numbers)
                self.record.calibrated(client, calibrations)
                if self.exchange and client in self.exchange.numbers:
                    self.exchange.took(client, reply.content)
                taken = adapter
            if taken is not None:
                yield client, taken

    def _adapter_in(self, reply: Message, server_round: int, client: str, whose: str) -> Adapter:
        """
        Raises:
            MessageError, AdapterError: there is none, or one that cannot be used.
        """
        start = self.model.start_of(self._rank(client))
        if self.config.federation.arm == "local":
            return start
        arrays = record_in(reply.content, ARRAYS, ArrayRecord)
        if arrays is None:
            raise MessageError(f"{whose}: a train reply without an adapter")
        halves, precision = self.model.rule.trains(server_round), self.config.aggregation.precision
        if precision == "float32" or f"{halves[0]}.{start.layout}" in arrays:  # what cannot be rounded comes as it is
            return arrays_to_adapter(arrays, start, whose=whose, halves=halves)
        return unpack(arrays, start, precision=precision, halves=halves, whose=whose)

    def _leave_out(self, client: str, reason: str) -> None:
        with self._or_left_out(client):
            raise RoundError(f"round {self.record.round}, {client}: {reason}")
        del self.examples[client]
        self.probes.leave_out(client)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """An `evaluate` message for every client, in the rounds that are due."""
        every, last = self.config.evaluate.every, self.config.train.rounds
        if server_round not in (0, last) and (not every or server_round % every):
            return
        local = self.config.federation.arm == "local"
        request = EvaluateRequest(
            round=server_round,
            seed=self.config.run.seed,
            own_adapter=local,
            sampling=self.config.sampling,
            evaluate=self.config.evaluate,
        )
        nodes = sorted(grid.get_node_ids())
        self.asked = len(nodes)
        for node in nodes:
            if self.clients.get(node) in self.record.left_out:
                continue  # it failed in this very round
            body = self._body(request, node, None if local else arrays)
            yield Message(body, node, MessageType.EVALUATE, group_id=str(server_round))

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Collect every client's scores by source; they are written with the round.

        Raises:
            RoundError, MessageError: as `aggregate_train`.
        """
        for reply in replies:
            client, whose = self._whose(reply, server_round)
            with self._or_left_out(client):
                _check_answered(reply, whose)
                self.model.answered(client)
                numbers = read_numbers(reply, whose=whose)
                scores: list[SourceScores] = read_scores(reply, whose=whose)
                self.record.client(client)["seconds_evaluate"] = numbers.get("seconds_evaluate", 0.0)
                self.record.evaluated(client, scores)
        return None

    def summary(self) -> None:
        """Nothing: the command line says what is about to run."""

    def state(self) -> dict[str, Any]:
        """What must be remembered between rounds besides the model, in JSON types."""
        return {**self.model.state(), **self.combiner.state()}

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on after a round that was checkpointed.

        Raises:
            CheckpointError: its state is none of this strategy.
        """
        state = checkpoint.strategy
        try:
            self.combiner.load(state)
            self.combiner.rule.load_state(checkpoint.rule)
            self.model.restore(checkpoint)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
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
        """Run the rounds from `first_round` on; the adapter after the last one.

        hooks: a Flower strategy that wraps this one (differential privacy, say) and is called in its place.

        Round 0 trains nothing: the starting adapter is evaluated and checkpointed. After each round its line
        of metrics.jsonl, the clients' memories and the checkpoint are written, in this order, so that a run killed at
        any moment goes on from the last round whose checkpoint is there.
        """
        hooks = hooks or self
        arrays = adapter_to_arrays(self.adapter, self.model.halves)
        nothing = ConfigRecord()
        for round_ in range(first_round, self.config.train.rounds + 1):
            self.record = RoundRecord(round_)
            self.observer.notify(RoundStarted(round_))
            if round_:
                self.observer.notify(PhaseStarted(round_, "train"))
                self.exchange_public(round_, arrays, grid, timeout)
                replies = self._ask(grid, hooks.configure_train(round_, arrays, nothing, grid), timeout)
                started, waited = time.perf_counter(), self.record.seconds.get(MessageType.TRAIN, 0.0)
                new_arrays, _ = hooks.aggregate_train(round_, replies)
                waited = self.record.seconds.get(MessageType.TRAIN, 0.0) - waited
                if new_arrays is not None:
                    arrays = new_arrays
                    if arrays is not self._made:  # what a wrapper made of our result is what everybody gets
                        self._take(arrays, round_)
                self.record.seconds["aggregate"] = time.perf_counter() - started - waited
            self.observer.notify(PhaseStarted(round_, "evaluate"))
            replies = self._ask(grid, hooks.configure_evaluate(round_, arrays, nothing, grid), timeout)
            hooks.aggregate_evaluate(round_, replies)
            self.observer.notify(PhaseStarted(round_, "checkpoint"))
            record = self.record.to_json()
            self.observer.notify(RoundEnded(round_, record))  # which writes the line of metrics.jsonl
            model, state, probes = self.model, self.state(), self.probes.average
            rule = self.combiner.rule.state()
            checkpoints.save(Checkpoint(round_, model.adapter, state, model.updates(), probes, rule))
            self.observer.notify(RoundSaved(round_, record))
        return self.adapter

    def _take(self, arrays: ArrayRecord, round_: int) -> None:
        rule = self.model.rule
        if not rule.is_linear or rule.alternates:
            others = " or ".join(repr(r.name) for r in RULES.values() if r.is_linear and not r.alternates)
            raise RoundError(
                f"round {round_}: a strategy around this one changed the aggregate, which aggregation.type = "
                f"{rule.name!r} has no place for; use {others} with it"
            )
        halves = self.model.halves
        whose = f"round {round_}, the aggregate"
        self.model.replace(arrays_to_adapter(arrays, self.adapter, whose=whose, halves=halves))

    def _ask(self, grid: Grid, messages: Iterable[Message], timeout: float) -> Iterator[Message]:
        """Send, and yield the replies as they come; bytes of both directions are counted by client."""
        out = list(messages)
        if not out:
            return
        kind = out[0].metadata.message_type
        for message in out:
            self.record.add_bytes(self.clients[message.metadata.dst_node_id], down=nbytes(message))
        waiting = {message.metadata.dst_node_id for message in out}
        started = time.perf_counter()
        replies = iter(grid.send_and_receive(out, timeout=timeout))
        del out, message
        while True:
            reply = next(replies, None)
            self.record.seconds[kind] = self.record.seconds.get(kind, 0.0) + time.perf_counter() - started
            if reply is None:
                break
            waiting.discard(reply.metadata.src_node_id)
            client = self.clients.get(reply.metadata.src_node_id)
            if client is not None:
                self.record.add_bytes(client, up=nbytes(reply))
            yield reply
            started = time.perf_counter()
        if kind == MessageType.TRAIN:
            self.observer.notify(PhaseStarted(self.record.round, "aggregate"))
        for client in sorted(self.clients[node] for node in waiting):
            with self._or_left_out(client):
                raise RoundError(f"round {self.record.round}: no answer within {timeout:.0f} s from {client}")

    def _whose(self, reply: Message, server_round: int) -> tuple[str, str]:
        client = self.clients.get(reply.metadata.src_node_id)
        if client is None:
            raise MessageError(f"round {server_round}: a reply from a node that is no client of this run")
        return client, f"round {server_round}, {client}"

    @contextlib.contextmanager
    def _or_left_out(self, client: str) -> Iterator[None]:
        """What goes wrong with a client's reply leaves it out of the round, as long as the quorum is kept.

        Raises:
            FedrlvrError: what went wrong, if everybody is needed.
            RoundError: too few are left; the text names them and their reasons.
        """
        quorum = self.config.federation.quorum
        try:
            yield
        except FedrlvrError as error:
            if quorum == 1.0:
                raise
            self.model.lost(client)
            self.record.left_out[client] = reason = str(error)[:MOST_REASON]
            self.observer.notify(ClientLeftOut(self.record.round, client, reason))
            _log.warning("left out: %s", error)
            needed = math.ceil(quorum * self.asked)
            if self.asked - len(self.record.left_out) < needed:
                told = " ".join(f"{name}: {reason}" for name, reason in self.record.left_out.items())
                raise RoundError(
                    f"round {self.record.round}: federation.quorum = {quorum:g} asks for {needed} of {self.asked} "
                    f"clients, and {len(self.record.left_out)} are left out. {told}"
                ) from error


def _check_answered(reply: Message, whose: str) -> None:
    """
    Raises:
        RoundError: the client failed.
    """
    if not reply.has_content():
        reason = reply.error.reason if reply.has_error() else "an empty reply"
        raise RoundError(f"{whose}: the client failed ({reason})")
