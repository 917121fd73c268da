"""Filters, weights and aggregates a round's client adapters, then takes the server's step, as [aggregation] says.

The adapters are taken one at a time, as replies come, so that the mean of many needs no more memory than that of two.
What looks at all of them together (`largest_change`, `robust`, a server step other than the plain mean, client weights
that compare clients, `keep_adapters`) holds them all, and is off unless it is asked for.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from fedrlvr.adapter import Adapter
from fedrlvr.aggregation import FGRPOWeights, Result, client_weights
from fedrlvr.aggregation.lora_rule import ProductAggregation
from fedrlvr.aggregation.personal import PERSONAL, PersonalMethod
from fedrlvr.aggregation.robust import CLIP, HOSTILE, ROBUST_MEANS, TRIM, clipped, robust_mean
from fedrlvr.aggregation.server_step import ServerStep, moved
from fedrlvr.config.aggregation import AggregationConfig
from fedrlvr.errors import FedrlvrError, MessageError, RoundError
from fedrlvr.output import logger
from fedrlvr.server.global_model import GlobalModel
from fedrlvr.server.metrics_log import RoundRecord

_log = logger("server")

Taken = Iterator[tuple[str, Adapter]]
"""Clients with their checked adapters, in the order of arrival."""


class Combiner:
    """Filters, weights and aggregates the adapters of each round, and keeps the client weights' state between rounds.

    step: the server's step; None: the global model is the mean itself.
    verified: whether FGRPO goes by `verified_reward`, which a client may lack, since not all of its rewards are true.
    problems: that a client draws in a round, at most.
    """

    def __init__(
        self,
        config: AggregationConfig,
        *,
        step: ServerStep | None = None,
        verified: bool = False,
        problems: int = 0,
    ) -> None:
        self.config = config
        self.rule = config.rule.aggregation()
        self.verified = verified and not config.gains_are_public
        self.problems = problems
        self.fgrpo = FGRPOWeights(**config.fgrpo) if config.weights == "fgrpo" else None
        self.step = step
        self.middle = 0.0
        """The last median length of a change that was not zero; `largest_change` goes by it where a round's is."""
        self.kept: dict[str, Adapter] = {}
        """The adapters of the round, by client, if they are to be kept (`aggregation.keep_adapters`)."""

    def combine(
        self,
        taken: Taken,
        examples: Mapping[str, int],
        model: GlobalModel,
        record: RoundRecord,
        leave_out: Callable[[str, str], None],
    ) -> Result:
        """Filter, weight and aggregate the round's adapters.

        If every client's own floor kept its adapter back, or so many that too few are left for a robust mean, the model
        stays as it was.

        examples: by client its number of training problems, there once its adapter has come. record: is told weights,
        gains, how much of a change was kept and the server's step. leave_out: called with a client and the reason.

        Raises:
            RoundError: no adapter has come, or those that have cannot be made one.
            FedrlvrError: whatever `taken` raises.
        """
        self.kept = {}
        if self.config.keep_adapters:
            taken = self._keeping(taken)
        if self.config.largest_change is not None or self.config.robust == "clip":
            taken = self._defended(dict(taken), model, record, leave_out)
        if (first := next(taken, None)) is None:
            if record.withheld:
                return _unchanged(model)
            raise RoundError(f"round {record.round}: no client answered")
        taken = itertools.chain(iter([first]), taken)
        del first  # or it would be held as long as the others come
        if self.config.robust in ROBUST_MEANS:
            adapters = dict(taken)  # after which all who withhold are known
            least = ROBUST_MEANS[self.config.robust](*self._robust_numbers)
            if record.withheld and len(adapters) < least:
                _log.warning(
                    "round %d: the global adapter stays as it was: aggregation.robust = %r needs %d clients, and the "
                    "floors of %s leave %d",
                    record.round,
                    self.config.robust,
                    least,
                    ", ".join(sorted(record.withheld)),
                    len(adapters),
                )
                return _unchanged(model)
            taken = iter(adapters.items())
        try:
            if self.step is not None:
                return self._stepped(self.step, dict(taken), examples, model, record)
            if self.config.robust in ROBUST_MEANS:
                return self._robust(dict(taken), model, record)
            if self.fgrpo is not None and self.fgrpo.compares:
                adapters = dict(taken)  # after which all rewards are known
                weights = self._weights(examples, record)
                pairs = ((adapters[client], weights[client]) for client in sorted(adapters))
                result = self.rule.aggregate(pairs, rank=model.adapter.rank, before=model.adapter)
            else:
                pairs = ((adapter, self._weight(client, examples, record)) for client, adapter in taken)
                result = self.rule.aggregate(pairs, rank=model.adapter.rank, before=model.adapter)
                weights = self._weights(examples, record)
            for client, weight in weights.items():
                record.client(client)["weight"] = weight
        except FedrlvrError:
            raise
        except ValueError as error:
            raise RoundError(f"round {record.round}: the adapters cannot be made one: {error}") from error
        return result

    def _keeping(self, taken: Taken) -> Taken:
        for client, adapter in taken:
            self.kept[client] = adapter
            yield client, adapter

    def _defended(
        self,
        adapters: dict[str, Adapter],
        model: GlobalModel,
        record: RoundRecord,
        leave_out: Callable[[str, str], None],
    ) -> Taken:
        """The adapters that are left, clipped if they are to be.

        Lengths are Euclidean, over the square root of the rank, so that clients of different ranks can be compared.
        """
        starts = {client: model.start_of(adapter.rank) for client, adapter in adapters.items()}
        lengths = {c: adapter.distance(starts[c]) / math.sqrt(adapter.rank) for c, adapter in adapters.items()}
        most = self.config.largest_change
        self.middle = middle = (statistics.median(lengths.values()) if lengths else 0.0) or self.middle
        for client, length in list(lengths.items()):
            if most is not None and middle and length > most * middle:
                norm = length * math.sqrt(adapters[client].rank)
                times = f"{length / middle:.1f} times the median; {most:g} is allowed"
                leave_out(client, f"its adapter changed by {norm:.3g}, {times}")
                del lengths[client]
        limit = math.inf
        if self.config.robust == "clip" and lengths:
            limit = statistics.median(lengths.values()) * (self.config.robust_clip or CLIP)
        for client, length in lengths.items():
            adapter = adapters.pop(client)
            if self.config.robust == "clip":
                record.client(client)["kept"] = min(1.0, limit / length) if length else 1.0
                adapter = clipped(adapter, starts[client], limit * math.sqrt(adapter.rank))
            yield client, adapter

    def _robust(self, adapters: Mapping[str, Adapter], model: GlobalModel, record: RoundRecord) -> Result:
        """What stands in for the mean.

        Raises:
            ValueError: too few adapters.
        """
        rule, (trim, hostile) = self.config.robust, self._robust_numbers
        adapter, chosen = robust_mean(adapters, model.adapter, rule=rule, trim=trim, hostile=hostile)
        if rule == "krum":
            for client in adapters:
                record.client(client)["weight"] = float(client in chosen)
        return Result(adapter, None)

    @property
    def _robust_numbers(self) -> tuple[float, int]:
        """The share that is trimmed, and the number of clients expected to be hostile."""
        return self.config.robust_trim or TRIM, self.config.robust_hostile or HOSTILE

    def _stepped(
        self,
        step: ServerStep,
        adapters: Mapping[str, Adapter],
        examples: Mapping[str, int],
        model: GlobalModel,
        record: RoundRecord,
    ) -> Result:
        """The round's model moved by the server's step.

        Raises:
            ValueError: too few adapters for a robust mean.
        """
        # Replies come in any order, and sums made in one order have the same bits.
        adapters = {client: adapters[client] for client in sorted(adapters)}
        rule, before = self.config.rule, model.adapter
        robust, halves = self.config.robust in ROBUST_MEANS, model.sends(record.round)
        changes = {c: step.space.change(a, model.start_of(a.rank), halves) for c, a in adapters.items()}
        if robust:
            replaced = self._robust(adapters, model, record).adapter
            assert replaced is not None
            mean = step.space.change(replaced, before, halves)
            shares = {client: record.client(client).get("weight", 1 / len(adapters)) for client in adapters}
        else:
            shares = self._weights(examples, record)
            for client, weight in shares.items():
                record.client(client)["weight"] = weight
            mean = step.space.total([(change, shares[client]) for client, change in changes.items()])
        number = (record.round - 1) // len(rule.turns) + 1
        update, record.server_step = step.take(changes, mean, shares, number=number, robust=robust)
        if rule.server_step == "factors":
            return Result(moved(before, mean, update))
        pairs = ((adapter, shares[client]) for client, adapter in adapters.items())
        assert isinstance(self.rule, ProductAggregation), "the entry of the rule says so"
        return self.rule.stepped(pairs, update, rank=before.rank, before=before)

    def _weight(self, client: str, examples: Mapping[str, int], record: RoundRecord) -> float:
        """How much a client counts, known before the others have answered: of any sum."""
        if self.fgrpo:
            return self.fgrpo.raw(client, self._reward(client, record), examples[client])
        return 1.0 if self.config.weights == "equal" else float(examples[client])

    def _weights(self, examples: Mapping[str, int], record: RoundRecord) -> dict[str, float]:
        """How much each client of the round counts, of sum 1."""
        if self.fgrpo is None:
            return client_weights(examples, rule="equal" if self.config.weights == "equal" else "examples")
        rewards = {client: self._reward(client, record) for client in examples}
        problems = {client: self._problems(client, examples[client], record) for client in examples}
        if self.fgrpo.shrink:  # a reward with no problem behind it is none
            rewards = {client: reward if problems[client] > 0 else None for client, reward in rewards.items()}
        for client, gain in self.fgrpo.gains(rewards, problems).items():
            record.client(client)["gain"] = gain
        return self.fgrpo.weights(rewards, examples, problems)

    def _reward(self, client: str, record: RoundRecord) -> float | None:
        """What FGRPO's gain is of. None: the client had no label in the round."""
        numbers = record.client(client)
        if self.config.gains_are_public:
            return numbers["public_correct"] / numbers["public_asked"]
        return numbers.get("verified_reward") if self.verified else numbers["reward"]

    def _problems(self, client: str, examples: int, record: RoundRecord) -> int:
        """Number of problems behind that reward; a problem that was drawn more than once counts once."""
        numbers = record.client(client)
        if self.config.gains_are_public:
            return int(numbers["public_problems"])
        drawn = min(self.problems, examples)
        return min(drawn, int(numbers.get("labels_used", 0))) if self.verified else drawn

    def check_numbers(self, numbers: Mapping[str, float], *, place: str) -> None:
        """Check that a client's reply has the reward that the client weights go by.

        Raises:
            MessageError: it has none, or one that gains cannot be shrunk by.
        """
        if self.fgrpo is None or self.config.gains_are_public:
            return
        name = "verified_reward" if self.verified else "reward"
        if name not in numbers and not self.verified:
            raise MessageError(f"{place}: a train reply without a mean reward")
        if self.fgrpo.shrink and not 0.0 <= (reward := numbers.get(name, 0.0)) <= 1.0:
            raise MessageError(
                f"{place}: its mean reward is {reward:g}, and aggregation.fgrpo_shrink needs rewards from 0 to 1. "
                "Leave it out, or scale data.rewards"
            )

    def state(self) -> dict[str, Any]:
        """State of the weights and bounds between rounds, as a JSON object."""
        return {"fgrpo": self.fgrpo.state(), "middle": self.middle} if self.fgrpo else {"middle": self.middle}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore the state that `state` gave.

        Raises:
            KeyError, ValueError: something that is no such state.
        """
        self.middle = float(state.get("middle", 0.0))
        if self.fgrpo:
            self.fgrpo.load(state["fgrpo"])


def _unchanged(model: GlobalModel) -> Result:
    return Result(adapter=None if model.rule.restarts else model.adapter, change=None)


def global_model(
    config: AggregationConfig, adapter: Adapter, seed: int, personal: PersonalMethod = PERSONAL["none"]
) -> GlobalModel:
    """Global model of the server, for the configured LoRA rule and way to personal adapters."""
    if personal.keeps is not None:
        from fedrlvr.server.personal_model import OthersModel, SharedHalfModel

        return (OthersModel if personal.beside_others else SharedHalfModel)(config.rule, adapter, seed, personal)
    if config.rule.sends_whole_adapter:
        return GlobalModel(config.rule, adapter, seed, config.precision_down)
    from fedrlvr.server.delta_model import DeltaModel

    return DeltaModel(config.rule, adapter, seed)
