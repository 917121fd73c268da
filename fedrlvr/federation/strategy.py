"""The server's side of a federation: whom to ask, what to make of the answers, when to write it down.

Flower's own `start()` can neither resume nor exchange anything between synchronisations, so `start()` is ours; the
hooks it calls are Flower's, so a strategy that wraps another still wraps this one.
"""

from __future__ import annotations

import contextlib
import logging
import math
import random
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedrlvr.adapter import Adapter
from fedrlvr.aggregation import FGRPOWeights, aggregate, client_weights
from fedrlvr.config import Config, PubSwapCoordination
from fedrlvr.coordination import stretches
from fedrlvr.errors import CheckpointError, FedrlvrError, MessageError, RoundError
from fedrlvr.federation.checkpoint import Checkpoint
from fedrlvr.federation.exchange import Exchange, PublicSet
from fedrlvr.federation.messages import (
    ARRAYS,
    EvaluateRequest,
    RespondRequest,
    SourceScores,
    TrainRequest,
    adapter_to_arrays,
    arrays_to_adapter,
    content,
    nbytes,
    read_numbers,
    read_scores,
)
from fedrlvr.federation.publicmessages import PUBLIC, RESPOND, SHARE, problems_record
from fedrlvr.federation.record import RoundRecord, RunLog
from fedrlvr.reporting.observer import Observer
from fedrlvr.seeds import stream

_log = logging.getLogger("fedrlvr.federation")

MOST_REASON = 500
"""Characters kept of why a client was left out: part of it may be the client's own words."""


class FederatedRLVR(Strategy):
    """Rounds of local GRPO, public exchanges if the config has them, and one aggregation.

    clients: the organisations by Flower node id. public: what exchanges are about; needed only for them.
    """

    def __init__(
        self,
        config: Config,
        clients: Mapping[int, str],
        adapter: Adapter,
        observer: Observer,
        public: PublicSet | None = None,
    ) -> None:
        self.config = config
        self.public = public
        aggregation = config.aggregation
        self.fgrpo = FGRPOWeights(**aggregation.fgrpo) if aggregation.weights == "fgrpo" else None
        self.exchange: Exchange | None = None
        self.asked = 0
        """Clients that were asked in this phase of the round; the quorum is of them."""
        self.clients = clients
        self.adapter = adapter
        self.observer = observer
        self.record = RoundRecord(0)

    # The hooks, in the order a round calls them.

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The round's clients, drawn by seed, and one `train` message for each.

        After exchanges it brings the last one's share; local steps are done, and the clients have their adapters.
        """
        local = self.config.federation.arm == "local"
        last = self.exchange
        request = TrainRequest(
            round=server_round,
            seed=self.config.run.seed,
            own_adapter=local,
            sampling=self.config.sampling,
            steps=0 if last else self.config.train.local_steps,
            train=self.config.train,
            supervision=self.config.supervision,
            coordination=last.coordination if last else None,
        )
        for node in self._present(server_round, grid):
            body = content(request, None if local or last else arrays)
            if last and (share := last.share(self.clients[node])) is not None:
                body[SHARE] = share
            yield Message(body, node, MessageType.TRAIN, group_id=str(server_round))

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
            request = RespondRequest(
                round=server_round,
                seed=self.config.run.seed,
                sampling=self.config.sampling,
                steps=steps,
                train=self.config.train,
                supervision=self.config.supervision,
                coordination=coordination,
                exchange=number,
                send=now.trades,
            )
            messages = []
            for node in nodes:
                client = self.clients[node]
                body = content(request, arrays if number == 1 else None)
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
                    replies[client] = reply.content
                    if last and client in last.numbers:
                        last.took(client, reply.content)
            now.receive(replies)
            if last:
                self.record.exchanges.append(last.to_json())
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
        adapters: dict[str, Adapter] = {}
        examples: dict[str, int] = {}
        for reply in replies:
            client, whose = self._whose(reply, server_round)
            with self._or_left_out(client):
                _check_answered(reply, whose)
                numbers = read_numbers(reply, whose=whose)
                if self.config.federation.arm != "local":
                    arrays = reply.content.array_records.get(ARRAYS)
                    if arrays is None:
                        raise MessageError(f"{whose}: a train reply without an adapter")
                    adapters[client] = arrays_to_adapter(arrays, self.adapter, whose=whose)
                if self.fgrpo and "reward" not in numbers:
                    raise MessageError(f"{whose}: a train reply without a mean reward")
                examples[client] = int(numbers["num-examples"])
                self.record.client(client).update(numbers)
                if self.exchange and client in self.exchange.numbers:
                    self.exchange.took(client, reply.content)
        for client, reason in self._outliers({client: adapters[client] for client in examples if client in adapters}):
            with self._or_left_out(client):
                raise RoundError(f"round {server_round}, {client}: {reason}")
            del examples[client]
        if not examples:
            raise RoundError(f"round {server_round}: no client answered")
        if self.exchange:
            self.record.exchanges.append(self.exchange.to_json())
            self.record.sum_exchanges()
            self.exchange = None
        if self.config.federation.arm == "local":
            return None, None
        weights = self._weights(examples)
        for client, weight in weights.items():
            self.record.client(client)["weight"] = weight
        self.adapter = aggregate({c: adapters[c] for c in examples}, weights, rule=self.config.aggregation.type)
        return adapter_to_arrays(self.adapter), None

    def _weights(self, examples: Mapping[str, int]) -> dict[str, float]:
        """How much each client of the round counts."""
        if self.fgrpo is None:
            rule = self.config.aggregation.weights
            return client_weights(examples, rule="equal" if rule == "equal" else "examples")
        rewards = {client: self.record.client(client)["reward"] for client in examples}
        for client, gain in self.fgrpo.gains(rewards).items():
            self.record.client(client)["gain"] = gain
        return self.fgrpo.weights(rewards, examples)

    def _outliers(self, adapters: Mapping[str, Adapter]) -> list[tuple[str, str]]:
        """Clients whose adapters changed by far more than the median did, and by how much."""
        limit = self.config.aggregation.largest_change
        if limit is None:
            return []
        norms = {client: adapter.distance(self.adapter) for client, adapter in adapters.items()}
        middle = statistics.median(norms.values()) if norms else 0.0
        found = []
        for client, norm in norms.items():
            if middle and norm > limit * middle:
                times = f"{norm / middle:.1f} times the round's median; {limit:g} is allowed"
                found.append((client, f"its adapter changed by {norm:.3g}, {times}"))
        return found

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
            body = content(request, None if local else arrays)
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
                numbers = read_numbers(reply, whose=whose)
                scores: list[SourceScores] = read_scores(reply, whose=whose)
                self.record.client(client)["seconds_evaluate"] = numbers.get("seconds_evaluate", 0.0)
                self.record.evaluated(client, scores)
        return None

    def summary(self) -> None:
        """Nothing: the command line says what is about to run."""

    def state(self) -> dict[str, Any]:
        """What must be remembered between rounds besides the adapter, in JSON types: FGRPO's histories."""
        return {"fgrpo": self.fgrpo.state()} if self.fgrpo else {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`.

        Raises:
            CheckpointError: something that is no such state.
        """
        if self.fgrpo:
            try:
                self.fgrpo.load(state["fgrpo"])
            except (KeyError, ValueError) as error:
                raise CheckpointError(f"the checkpoint's state of FGRPO cannot be used ({error})") from None

    # The loop.

    def start(  # type: ignore[override]
        self, grid: Grid, log: RunLog, *, first_round: int = 0, timeout: float = 3600.0, hooks: Strategy | None = None
    ) -> Adapter:
        """Run the rounds from `first_round` on; the adapter after the last one.

        hooks: a Flower strategy that wraps this one (differential privacy, say) and is called in its place.

        Round 0 trains nothing: the starting adapter is evaluated and checkpointed. After each round `log` writes its
        metrics, the clients' memories and the checkpoint, in this order, so that a run killed at any moment goes on
        from the last round whose checkpoint is there.
        """
        hooks = hooks or self
        arrays = adapter_to_arrays(self.adapter)
        nothing = ConfigRecord()
        for round_ in range(first_round, self.config.train.rounds + 1):
            self.record = RoundRecord(round_)
            if round_:
                self.observer.phase(round_, "train")
                self.exchange_public(round_, arrays, grid, timeout)
                replies = self._ask(grid, hooks.configure_train(round_, arrays, nothing, grid), timeout)
                self.observer.phase(round_, "aggregate")
                started = time.perf_counter()
                new_arrays, _ = hooks.aggregate_train(round_, replies)
                if new_arrays is not None:  # what a wrapper made of our result is what everybody gets
                    arrays = new_arrays
                    self.adapter = arrays_to_adapter(arrays, self.adapter, whose=f"round {round_}, the aggregate")
                self.record.seconds["aggregate"] = time.perf_counter() - started
            self.observer.phase(round_, "evaluate")
            replies = self._ask(grid, hooks.configure_evaluate(round_, arrays, nothing, grid), timeout)
            hooks.aggregate_evaluate(round_, replies)
            self.observer.phase(round_, "checkpoint")
            log.write(self.record, Checkpoint(round_, self.adapter, self.state()))
            self.observer.round_done(self.record.to_json())
        return self.adapter

    def _ask(self, grid: Grid, messages: Iterable[Message], timeout: float) -> list[Message]:
        """Send, receive, and count the bytes of both directions by client."""
        out = list(messages)
        if not out:
            return []
        started = time.perf_counter()
        for message in out:
            self.record.add_bytes(self.clients[message.metadata.dst_node_id], down=nbytes(message))
        replies = list(grid.send_and_receive(out, timeout=timeout))
        for reply in replies:
            client = self.clients.get(reply.metadata.src_node_id)
            if client is not None:
                self.record.add_bytes(client, up=nbytes(reply))
        missing = {m.metadata.dst_node_id for m in out} - {r.metadata.src_node_id for r in replies}
        for client in sorted(self.clients[node] for node in missing):
            with self._or_left_out(client):
                raise RoundError(f"round {self.record.round}: no answer within {timeout:.0f} s from {client}")
        kind = out[0].metadata.message_type
        self.record.seconds[kind] = self.record.seconds.get(kind, 0.0) + time.perf_counter() - started
        return replies

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
            self.record.left_out[client] = str(error)[:MOST_REASON]
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
