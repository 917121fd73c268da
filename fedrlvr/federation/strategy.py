"""The server's side of a federation: whom to ask, what to make of the answers, when to write it down.

Flower's own `start()` can neither resume nor exchange anything between synchronisations, so `start()` is ours; the
hooks it calls are Flower's, so a strategy that wraps another still wraps this one.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterable, Mapping
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from fedrlvr.adapter import Adapter
from fedrlvr.aggregation import FGRPOWeights, aggregate, client_weights
from fedrlvr.config import Config, PubSwapCoordination
from fedrlvr.coordination import stretches
from fedrlvr.errors import CheckpointError, MessageError, RoundError
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
        for node in self._chosen(server_round, grid):
            body = content(request, None if local or last else arrays)
            if last and (share := last.share(self.clients[node])) is not None:
                body[SHARE] = share
            yield Message(body, node, MessageType.TRAIN, group_id=str(server_round))

    def _chosen(self, server_round: int, grid: Grid) -> list[int]:
        """The nodes that take part in a round."""
        nodes = sorted(grid.get_node_ids())
        count = max(1, math.floor(self.config.federation.fraction * len(nodes) + 0.5))
        return sorted(random.Random(stream(self.config.run.seed, "clients", server_round)).sample(nodes, count))

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
        nodes = self._chosen(server_round, grid)
        last: Exchange | None = None
        for number, steps in enumerate(stretches(self.config.train.local_steps, coordination.exchanges), start=1):
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
                client, _ = self._whose(reply, server_round)
                replies[client] = reply.content
                if last:
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

        Raises:
            RoundError: a client failed.
            MessageError, AdapterError: a reply that cannot be used; the text names client and round.
        """
        adapters: dict[str, Adapter] = {}
        examples: dict[str, int] = {}
        for reply in replies:
            client, whose = self._whose(reply, server_round)
            numbers = read_numbers(reply, whose=whose)
            examples[client] = int(numbers["num-examples"])
            self.record.client(client).update(numbers)
            if self.exchange:
                self.exchange.took(client, reply.content)
            if self.config.federation.arm != "local":
                arrays = reply.content.array_records.get(ARRAYS)
                if arrays is None:
                    raise MessageError(f"{whose}: a train reply without an adapter")
                adapters[client] = arrays_to_adapter(arrays, self.adapter, whose=whose)
        if not examples:
            raise RoundError(f"round {server_round}: no client answered")
        if self.exchange:
            self.record.exchanges.append(self.exchange.to_json())
            self.record.sum_exchanges()
            self.exchange = None
        if self.config.federation.arm == "local":
            return None, None
        weights = self._weights(server_round, examples)
        for client, weight in weights.items():
            self.record.client(client)["weight"] = weight
        self.adapter = aggregate(adapters, weights, rule=self.config.aggregation.type)
        return adapter_to_arrays(self.adapter), None

    def _weights(self, server_round: int, examples: Mapping[str, int]) -> dict[str, float]:
        """How much each client of the round counts.

        Raises:
            MessageError: a client reports no mean reward, and FGRPO weighs by it.
        """
        if self.fgrpo is None:
            rule = self.config.aggregation.weights
            return client_weights(examples, rule="equal" if rule == "equal" else "examples")
        rewards = {client: self.record.client(client).get("reward") for client in examples}
        for client, reward in rewards.items():
            if reward is None:
                raise MessageError(f"round {server_round}, {client}: a train reply without a mean reward")
        known = {client: reward for client, reward in rewards.items() if reward is not None}
        for client, gain in self.fgrpo.gains(known).items():
            self.record.client(client)["gain"] = gain
        return self.fgrpo.weights(known, examples)

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
        for node in sorted(grid.get_node_ids()):
            body = content(request, None if local else arrays)
            yield Message(body, node, MessageType.EVALUATE, group_id=str(server_round))

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Collect every client's scores by source; they are written with the round.

        Raises:
            RoundError, MessageError: as `aggregate_train`.
        """
        for reply in replies:
            client, whose = self._whose(reply, server_round)
            numbers = read_numbers(reply, whose=whose)
            self.record.client(client)["seconds_evaluate"] = numbers.get("seconds_evaluate", 0.0)
            scores: list[SourceScores] = read_scores(reply, whose=whose)
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
        if missing:
            names = ", ".join(sorted(self.clients[node] for node in missing))
            raise RoundError(f"round {self.record.round}: no answer within {timeout:.0f} s from {names}")
        kind = out[0].metadata.message_type
        self.record.seconds[kind] = self.record.seconds.get(kind, 0.0) + time.perf_counter() - started
        return replies

    def _whose(self, reply: Message, server_round: int) -> tuple[str, str]:
        client = self.clients.get(reply.metadata.src_node_id)
        if client is None:
            raise MessageError(f"round {server_round}: a reply from a node that is no client of this run")
        whose = f"round {server_round}, {client}"
        if not reply.has_content():
            reason = reply.error.reason if reply.has_error() else "an empty reply"
            raise RoundError(f"{whose}: the client failed ({reason})")
        return client, whose
