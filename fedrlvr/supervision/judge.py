"""The judge: CARE's two probes, learning while the policy does (arXiv 2605.25864, authors' code).

    P1(x)                                                  the majority's answer is right
    S(x) = sqrt(G) (P1 + sum_{y > 0} P2(y | x))            `mixed`: expected value of a label beside masked problems
    S(x) = sum_y P2(y | x) CAG(G, votes, y)                `gap`: beside problems trained on as voted; the authors'

After each update of the policy: three steps of AdamW (no weight decay), each on this step's labelled problems and 16
replayed ones, drawn anew for each probe. The new problems are replayed from the next update on.
1. y = 0 stands for a majority that is right and for one that is wrong where nobody is right. CAG(G, votes, 0) counts
   for both, so the `gap` is at least sqrt(G) wherever the vote is neither unanimous nor empty. As with the authors.
2. `mixed` is ours: with the rest masked, a label is worth sqrt(G) where the group is mixed (`cag.mixed_chance`).
3. One replay buffer serves both probes: the authors' two hold the same.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Generator, Tensor, nn

from fedrlvr.supervision.acquisition import Worth
from fedrlvr.supervision.cag import cag, mixed_chance
from fedrlvr.supervision.features import Features, Labelled, joined
from fedrlvr.supervision.held_out import HeldOut
from fedrlvr.supervision.probes import AUXILIARY, CorrectionProbe, ReliabilityProbe

AUTHORS_RATE, LARGEST_RATE, RATE_BY_WIDTH = 1e-4, 1e-3, 0.128
"""Learning rate of the probes from width 1,280 and up to width 128, and the product of rate and width between these."""
MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""Names of the tensors that AdamW keeps for each parameter."""
PARTS = ("weights", "moments", "replay", "held_out", "rng")
"""Names of the parts of a judge's state."""
Plain = dict[str, int]
"""The part of a state that is JSON."""


def learning_rate(width: int) -> float:
    """Learning rate of the probes on hidden states of this width: 0.128 / width, from 1e-4 to 1e-3.

    A step of AdamW moves every weight by about the learning rate, and so an output by about the rate times the width.
    The authors take 1e-4 at widths from about 1,500 to 4,000. At width 128 a rate of 1e-3 was used here in trials of an
    early start of trust; the two rates alone were not compared.
    """
    return min(max(RATE_BY_WIDTH / width, AUTHORS_RATE), LARGEST_RATE)


@dataclass(frozen=True)
class Settings:
    """Settings of the judge. replay: labelled problems kept; replayed: of them, in each step. worth: estimated by S."""

    lr: float = AUTHORS_RATE
    steps: int = 3
    clip: float = 1.0
    replay: int = 2048
    replayed: int = 16
    worth: Worth = "gap"


@dataclass(frozen=True)
class Judgement:
    """P problems as the judge sees them: reliable_P is P1, score_P is S, number_PC is P2."""

    reliable_P: Tensor
    score_P: Tensor
    number_PC: Tensor


class Replay:
    """The last `size` labelled problems, first in, first out, in memory of the CPU."""

    def __init__(self, size: int) -> None:
        self._rows: deque[tuple[int, Labelled]] = deque(maxlen=size)

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, batch: Labelled) -> None:
        """Keep labelled problems; the oldest are dropped when the memory is full."""
        for row in batch.to(torch.device("cpu")).rows():
            self._rows.append((int(row.outside_P), row))

    def draw(self, count: int, rng: Generator, *, stratified: bool = False) -> list[Labelled]:
        """`count` problems without repetition, or all if there are no more.

        stratified: as evenly as the numbers of correct responses outside the majority allow: an equal share of each
        first, then any.
        """
        order: list[int] = torch.randperm(len(self._rows), generator=rng).tolist()
        if stratified and 0 < count < len(order):
            order = self._evenly(order, count)
        return [self._rows[index][1] for index in order[:count]]

    def _evenly(self, order: list[int], count: int) -> list[int]:
        """The order with each label's share in front."""
        by_label: dict[int, list[int]] = {}
        for index in order:
            by_label.setdefault(self._rows[index][0], []).append(index)
        share = max(1, count // len(by_label))
        first = [index for label in sorted(by_label) for index in by_label[label][:share]]
        taken = set(first)
        return first + [index for index in order if index not in taken]

    def everything(self) -> Labelled | None:
        """All labelled problems that are kept, oldest first."""
        return joined(row for _, row in self._rows) if self._rows else None

    def replace(self, batch: Labelled | None) -> None:
        """Forget all problems, and keep these instead."""
        self._rows.clear()
        if batch is not None:
            self.add(batch)


class Judge:
    """One client's probes with their optimizers and replay.

    All chance is `rng`'s, a generator of the CPU: the first weights and what is replayed.
    """

    def __init__(
        self, hidden: int, group: int, rng: Generator, settings: Settings | None = None, device: str = "cpu"
    ) -> None:
        self.settings = settings or Settings()
        self.updates = 0
        self._hidden, self._group, self._rng, self._device = hidden, group, rng, torch.device(device)
        self._replay = Replay(self.settings.replay)
        self._held_out = HeldOut()
        self._reliability = ReliabilityProbe(hidden, group, rng)
        self._correction = CorrectionProbe(hidden, group, rng)
        probes: dict[str, nn.Module] = {"reliability": self._reliability, "correction": self._correction}
        self._probes = nn.ModuleDict(probes).to(self._device)
        self._optimizer = torch.optim.AdamW(self._probes.parameters(), lr=self.settings.lr, weight_decay=0.0)
        self._gaps_VC = torch.tensor(
            [[cag(group, v, y) if v + y <= group else 0.0 for y in range(group + 1)] for v in range(group + 1)],
            device=self._device,
        )

    @torch.no_grad()
    def judge(self, seen: Features) -> Judgement:
        """P1, S and P2 of problems with or without a label; on the judge's device.

        Raises:
            ValueError: features of other widths than the judge's.
        """
        self._check(seen)
        self._probes.eval()
        seen = seen.to(self._device)
        number_PC = self._correction(seen).softmax(dim=1)
        reliable_P = self._reliability(seen).softmax(dim=1)[:, 1]
        return Judgement(reliable_P, self._score(seen.votes_P, reliable_P, number_PC), number_PC)

    def _score(self, votes_P: Tensor, reliable_P: Tensor, number_PC: Tensor) -> Tensor:
        if self.settings.worth == "gap":
            gap_P: Tensor = (number_PC * self._gaps_VC[votes_P]).sum(dim=1)
            return gap_P
        rows = zip(votes_P.tolist(), reliable_P.tolist(), number_PC[:, 1:].sum(dim=1).tolist(), strict=True)
        chances = [mixed_chance(self._group, votes, reliable, outside) for votes, reliable, outside in rows]
        return torch.tensor(chances, dtype=torch.float32, device=self._device) * math.sqrt(self._group)

    @property
    def auc(self) -> float | None:
        """AUC of P1 on the newest labels, each judged before the probes learned from it; None with too few of them."""
        return self._held_out.auc

    def hold_out(self, reliable: float, right: bool) -> None:
        """Add a problem's P1 from before the probes learned from its label, and whether the majority was right."""
        self._held_out.add(reliable, right)

    def learn(self, new: Labelled | None) -> dict[str, float]:
        """One update's steps on this step's labelled problems (None: replay only).

        Returns the mean losses `reliability_loss`, `response_loss` (not multiplied) and `correction_loss`; nothing if
        there was nothing to learn from.

        Raises:
            ValueError: features of other widths than the judge's.
        """
        if new is not None:
            self._check(new)
        fresh = [new.to(torch.device("cpu"))] if new is not None and len(new) else []
        if not fresh and not len(self._replay):
            return {}
        self._probes.train()
        sums = dict.fromkeys(("reliability_loss", "response_loss", "correction_loss"), 0.0)
        for _ in range(self.settings.steps):
            vote, each = self._reliability.loss(self._batch(fresh, stratified=False))
            number = self._correction.loss(self._batch(fresh, stratified=True))
            self._optimizer.zero_grad()
            # The probes share no parameter: each has the gradient of its own loss.
            (vote + AUXILIARY * each + number).backward()  # type: ignore[no-untyped-call]
            for probe in self._probes.values():
                nn.utils.clip_grad_norm_(probe.parameters(), self.settings.clip)
            self._optimizer.step()
            for name, loss in zip(sums, (vote, each, number), strict=True):
                sums[name] += loss.item() / self.settings.steps
        for batch in fresh:
            self._replay.add(batch)
        self.updates += 1
        return sums

    def _batch(self, fresh: list[Labelled], *, stratified: bool) -> Labelled:
        return joined(fresh + self._replay.draw(self.settings.replayed, self._rng, stratified=stratified)).to(
            self._device
        )

    def _check(self, seen: Features) -> None:
        if seen.response_PGH.shape[1:] != (self._group, self._hidden):
            given = tuple(seen.response_PGH.shape[1:])
            raise ValueError(f"features of [G, H] = {given}; the judge takes ({self._group}, {self._hidden})")

    # What may be shared, and what is kept.

    def shared(self) -> dict[str, Tensor]:
        """Copies of both probes' weights and running statistics, for the average with other clients."""
        return {name: tensor.clone() for name, tensor in self._weights().items() if tensor.is_floating_point()}

    def flattened(self) -> Tensor:
        """`shared` end to end, in float32 on the CPU."""
        return torch.cat([tensor.flatten() for tensor in self.shared().values()]).cpu()

    def load_flattened(self, values: Tensor) -> None:
        """Take weights that are `flattened` of some judge, or a mean of such; optimizer and replay stay.

        Raises:
            ValueError: not as many values, or impossible ones. Nothing has changed then.
        """
        weights = {name: tensor for name, tensor in self._weights().items() if tensor.is_floating_point()}
        sizes = [tensor.numel() for tensor in weights.values()]
        if values.shape != (sum(sizes),) or values.dtype != torch.float32:
            raise ValueError(f"{values.dtype} {tuple(values.shape)}; the probes have {sum(sizes)} values")
        parts = dict(zip(weights, torch.split(values, sizes), strict=True))
        for name, part in parts.items():
            if not bool(part.isfinite().all()) or (name.endswith("running_var") and bool((part < 0).any())):
                raise ValueError(f"{name} has values that no probe has")
        _copy({name: part.view(weights[name].shape) for name, part in parts.items()}, weights)

    def state(self) -> tuple[dict[str, Tensor], Plain]:
        """State of the judge's training, as tensors (copies, on the CPU) and as JSON."""
        kept = self._replay.everything()
        tensors = {
            **{f"weights/{name}": tensor for name, tensor in self._weights().items()},
            **{f"moments/{name}": tensor for name, tensor in self._moments().items()},
            **{f"replay/{name}": tensor for name, tensor in (kept.tensors() if kept else {}).items()},
            "held_out": self._held_out.tensor(),
            "rng": self._rng.get_state(),
        }
        plain = {"hidden": self._hidden, "group": self._group, "updates": self.updates}
        return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}, plain

    def load(self, tensors: Mapping[str, Tensor], plain: Plain) -> None:
        """Restore what `state` gave, of a judge with the same settings.

        Raises:
            ValueError: a state of a judge of other widths, or one that is not whole. Nothing has changed then.
        """
        if (plain.get("hidden"), plain.get("group")) != (self._hidden, self._group):
            raise ValueError(f"the state is of a judge of other widths: {plain}")
        parts: dict[str, dict[str, Tensor]] = {part: {} for part in PARTS}
        for name, tensor in tensors.items():
            part, _, rest = name.partition("/")
            if part not in parts:
                raise ValueError(f"a judge's state has no {name}")
            parts[part][rest] = tensor
        weights, updates = self._weights(), plain.get("updates", 0)
        moments = {
            f"{name}.{moment}": torch.zeros_like(parameter) if moment != "step" else torch.tensor(0.0)
            for name, parameter in (self._probes.named_parameters() if updates else ())
            for moment in MOMENTS
        }
        _check_layout(parts["weights"], weights)
        _check_layout(parts["moments"], moments)
        _check_layout(parts["rng"], {"": self._rng.get_state()})
        held_out = HeldOut()
        held_out.load(parts["held_out"].get("", torch.empty(0)))
        kept = _labelled(parts["replay"])
        if kept is not None:
            self._check(kept)
        _copy(parts["weights"], weights)
        _copy(parts["moments"], moments)
        self._optimizer.state.clear()
        for name, parameter in self._probes.named_parameters() if updates else ():
            self._optimizer.state[parameter] = {moment: moments[f"{name}.{moment}"] for moment in MOMENTS}
        self._replay.replace(kept)
        self._held_out = held_out
        self._rng.set_state(parts["rng"][""].clone())
        self.updates = updates

    def _weights(self) -> dict[str, Tensor]:
        """Weights and statistics of both probes themselves, not copies."""
        return dict(self._probes.state_dict())

    def _moments(self) -> dict[str, Tensor]:
        """What the optimizers have gathered; nothing before the first update."""
        return {
            f"{name}.{moment}": tensor
            for name, parameter in self._probes.named_parameters()
            for moment, tensor in self._optimizer.state.get(parameter, {}).items()
        }


def _check_layout(given: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> None:
    if given.keys() != like.keys():
        raise ValueError(f"names that differ from the judge's: {sorted(given.keys() ^ like.keys())[:3]}")
    for name, tensor in given.items():
        if (tensor.shape, tensor.dtype) != (like[name].shape, like[name].dtype):
            raise ValueError(f"{name} is {tensor.dtype} {tuple(tensor.shape)}")


def _copy(given: Mapping[str, Tensor], into: Mapping[str, Tensor]) -> None:
    for name, tensor in given.items():
        into[name].copy_(tensor)


def _labelled(tensors: Mapping[str, Tensor]) -> Labelled | None:
    """Replayed problems from their fields.

    Raises:
        ValueError: a field is missing or unknown, or they are not as many.
    """
    if not tensors:
        return None
    if tensors.keys() != {field.name for field in fields(Labelled)} or len({len(t) for t in tensors.values()}) > 1:
        raise ValueError("the replayed problems are not whole")
    return Labelled(**tensors)
