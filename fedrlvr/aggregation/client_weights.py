"""The weight of each client's adapter in a round, for any LoRA rule.

examples   w_k = n_k / sum_j n_j      n_k problems at client k (FedAvg, arXiv 1602.05629)
equal      w_k = 1 / K
fgrpo      each client counts by its gain over its own history (FGRPO, arXiv 2606.03094)

    R_k   client k's mean reward in this round        b_k   its baseline, from earlier rounds only
    g_k   relative:  clip((R_k - b_k) / |b_k|, -1, 1)
          zscore:    clip((R_k - b_k) / s_k, -3, 3)        s_k: standard deviation of its earlier rewards
    b_k   ema:       b <- (1 - beta) b + beta R_k after each round it took part in;  s_k by the same weights
          window:    mean and standard deviation of its last `window` rewards
          peers:     the mean of R over the clients of the round, and their standard deviation (ours)
    w_k   softmax:   n_k exp(g_k / T) / sum_j n_j exp(g_j / T)
          positive:  n_k (floor + max(g_k, 0)) / sum_j n_j (floor + max(g_j, 0))

Known, from the abstract: the server weighs clients by their relative gain over a personalised historical baseline, so
that reward scales which differ do not decide. Our reading: every formula above; the paper's could not be read.

Shrinkage (ours). R_k is a mean over m_k problems, so a gain is partly noise. Each gain is multiplied by

    1 / (1 + u_k / t)     u_k   noise: variance of the gain that m_k problems leave, at most that of the clipped range
                          t     signal: max(0, sample variance of the round's gains - mean of u)

    u_k   (R_k (1 - R_k) + q b_k (1 - b_k)) / (m_k s^2)      s: the divisor of the gain, |b_k| or s_k
    q     noise left in the baseline, in units of one round's; it averages n rounds
          ema: q = q' + (1 - q') (1 - beta)^(2 (n - 1)) with q' = beta / (2 - beta);  window: 1 / n
    peers: u_k = ((1 - 2 / K) v_k + sum_j v_j / K^2) / s^2   with v_j = R_j (1 - R_j) / m_j, K clients

R (1 - R) is the variance of one reward that is 0 or 1, and the largest one of any reward from 0 to 1 (the inequality of
Bhatia and Davis). So u is an upper bound, and gains shrink by too much rather than too little where rewards are graded
or several responses to a problem differ. What clients differ by is told from noise as in random-effects models (method
of moments, DerSimonian and Laird 1986): if gains differ no more than noise does, t = 0 and all weights are those of
`examples`. A client with few problems has more noise, and a smaller gain.

Of FGRPO:
1. A client without a history has no gain, so the first round is FedAvg. T to infinity is FedAvg too.
2. Both gains are free of the reward's scale: a client whose rewards are all multiplied by c > 0 weighs what it did.
3. A client that sits out keeps its baseline.
4. A spread of next to nothing makes any change a large `zscore`, up to its clip.
5. Where not all rewards are true, R_k is the mean of those that are. A client without any has no gain in the round, and
   keeps its baseline.
6. Against `peers` a gain is of this round alone. It needs rewards that can be compared, such as those of problems that
   all clients answer. Clients begin a round with one adapter, so what all have in common says nothing of their steps. A
   baseline of earlier rounds would favour a client that stands still: all gain by the last round's mean, and one that
   learnt much in every round is held against what it had learnt before the mean.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

Plain = Literal["examples", "equal"]
Weights = Literal[Plain, "fgrpo"]
Gain = Literal["relative", "zscore"]
Baseline = Literal["ema", "window", "peers"]
Shape = Literal["softmax", "positive"]

LARGEST = {"relative": 1.0, "zscore": 3.0}
"""Gains are clipped to plus and minus this."""


def client_weights(examples: Mapping[str, int], *, rule: Plain = "examples") -> dict[str, float]:
    """Weights by client that sum to 1.

    Raises:
        ValueError: no clients, an unknown rule, a negative count, or no examples at all.
    """
    if rule not in get_args(Plain):
        raise ValueError(f"unknown weights {rule!r}; known: {', '.join(get_args(Plain))}")
    if not examples or any(count < 0 for count in examples.values()):
        raise ValueError("give each of at least one client a number of examples that is not negative")
    counts = examples if rule == "examples" else dict.fromkeys(examples, 1)
    total = sum(counts.values())
    if total == 0:
        raise ValueError("no client has an example to be weighed by")
    return {client: count / total for client, count in counts.items()}


def shrunk(gains: Mapping[str, float], noises: Mapping[str, float]) -> dict[str, float]:
    """The gains of a round, each times 1 / (1 + noise / signal); 0 where the gains differ no more than by noise.

    noises: their variances, upper bounds of what chance does to each.
    """
    if len(gains) < 2:
        return dict.fromkeys(gains, 0.0)
    signal = statistics.variance(gains.values()) - statistics.fmean(noises.values())
    if signal <= 0:
        return dict.fromkeys(gains, 0.0)
    return {client: gain / (1 + noises[client] / signal) for client, gain in gains.items()}


@dataclass
class _History:
    """One client's earlier rewards, as far as its baseline needs them."""

    mean: float = 0.0
    square: float = 0.0
    """Mean squared deviation."""
    rounds: int = 0
    last: list[float] = field(default_factory=list)


class FGRPOWeights:
    """Client weights that remember. One object serves one federation.

    temperature: T of `softmax`. beta: share of the newest reward in an `ema`. window: rewards in a `window`. floor:
    what a client without a gain counts under `positive`, where a full relative gain counts 1 more. shrink: multiply
    gains by 1 / (1 + noise / signal).

    Raises:
        ValueError: an unknown option, or a number outside its range.
    """

    def __init__(
        self,
        *,
        gain: Gain = "relative",
        baseline: Baseline = "ema",
        shape: Shape = "softmax",
        temperature: float = 1.0,
        beta: float = 0.5,
        window: int = 5,
        floor: float = 0.1,
        shrink: bool = False,
    ) -> None:
        for value, known in ((gain, get_args(Gain)), (baseline, get_args(Baseline)), (shape, get_args(Shape))):
            if value not in known:
                raise ValueError(f"must be one of {', '.join(known)}, got {value!r}")
        if not (temperature > 0 and 0 < beta <= 1 and window >= 1 and floor > 0):
            raise ValueError("temperature and floor must be above 0, beta in (0, 1], and window at least 1")
        self.gain, self.baseline, self.shape = gain, baseline, shape
        self.temperature, self.beta, self.window, self.floor = temperature, beta, window, floor
        self.shrink = shrink
        self._histories: dict[str, _History] = {}

    @property
    def compares(self) -> bool:
        """Whether a client's weight depends on the other clients of the round by more than their sum."""
        return self.shrink or self.baseline == "peers"

    def weights(
        self,
        rewards: Mapping[str, float | None],
        examples: Mapping[str, int],
        problems: Mapping[str, int] | None = None,
    ) -> dict[str, float]:
        """This round's weights by client, which sum to 1; the rewards then join their clients' histories.

        rewards: mean reward of each client that took part; None: it has none, so no gain either, and its history stays.
        examples: its number of training problems. problems: those behind its reward, as for `gains`.

        Raises:
            ValueError: a reward that is not finite (the client is named), other clients in one than in the other, a
                negative count, or no examples at all; or as `gains`. Histories are as they were.
        """
        if set(rewards) != set(examples):
            raise ValueError("give one reward and one number of examples for each client")
        for client, reward in rewards.items():
            if reward is not None and not math.isfinite(reward):
                raise ValueError(f"{client}: its mean reward is {reward}, which is not finite")
        plain = client_weights(examples)
        gains = self.gains(rewards, problems)
        if self.shape == "softmax":
            top = max(gains.values())  # before the exponential, or a small temperature overflows
            raw = {client: n * math.exp((gains[client] - top) / self.temperature) for client, n in examples.items()}
        else:
            raw = {client: n * (self.floor + max(gains[client], 0.0)) for client, n in examples.items()}
        total = sum(raw.values())
        for client, reward in rewards.items():
            if reward is not None and self.baseline != "peers":
                self._remember(client, reward)
        # Without a total, all weight underflowed but that of clients without examples.
        return {client: value / total for client, value in raw.items()} if total else plain

    def raw(self, client: str, reward: float | None, examples: int) -> float:
        """A client's weight before all are divided by their sum, which needs no other client's reward.

        Not negative, and nothing is remembered; with a temperature below 0.01 it can underflow to zero.

        Raises:
            ValueError: the weight needs the others' rewards (`compares`).
        """
        if self.compares:
            raise ValueError("these weights are known only once all clients of the round are")
        gain = self.gains({client: reward})[client]
        if self.shape == "softmax":
            return examples * math.exp((gain - LARGEST[self.gain]) / self.temperature)
        return examples * (self.floor + max(gain, 0.0))

    def gains(self, rewards: Mapping[str, float | None], problems: Mapping[str, int] | None = None) -> dict[str, float]:
        """Each client's gain at these rewards; nothing is remembered.

        problems: number of problems behind each reward; needed to shrink gains.

        Raises:
            ValueError: gains are to be shrunk, and a reward is not within 0 to 1, or the number of problems behind one
                is missing or not positive; the client is named.
        """
        known = {client: reward for client, reward in rewards.items() if reward is not None}
        baselines = self._baselines(known)
        gains = dict.fromkeys(rewards, 0.0)
        gains |= {
            client: self._gain(reward, *baselines[client]) for client, reward in known.items() if client in baselines
        }
        if not self.shrink:
            return gains
        counts = {client: (problems or {}).get(client, 0) for client in baselines}
        for client, count in counts.items():
            if not (0.0 <= known[client] <= 1.0 and count > 0):
                raise ValueError(
                    f"{client}: shrinking a gain needs a mean reward from 0 to 1 over at least one problem, and it is "
                    f"{known[client]:g} over {count}"
                )
        noises = self._noises({client: known[client] for client in baselines}, baselines, counts)
        return gains | shrunk({client: gains[client] for client in baselines}, noises)

    def _baselines(self, rewards: Mapping[str, float]) -> dict[str, tuple[float, float]]:
        """Baseline and divisor of the gain of each client that has a baseline."""
        if self.baseline == "peers":
            if len(rewards) < 2:
                return {}
            mean = statistics.fmean(rewards.values())
            scale = abs(mean) if self.gain == "relative" else statistics.pstdev(rewards.values(), mean)
            return dict.fromkeys(rewards, (mean, scale))
        least = 1 if self.gain == "relative" else 2  # one reward has no spread
        known = {client: self._histories[client] for client in rewards if client in self._histories}
        return {
            client: (history.mean, abs(history.mean) if self.gain == "relative" else math.sqrt(history.square))
            for client, history in known.items()
            if history.rounds >= least
        }

    def _gain(self, reward: float, baseline: float, scale: float) -> float:
        ahead, most = reward - baseline, LARGEST[self.gain]
        # A difference that is rounding next to the reward itself is none, and nothing is divided by it or by zero.
        if abs(ahead) <= 1e-12 * max(abs(reward), abs(baseline)):
            return 0.0
        return math.copysign(most, ahead) if abs(ahead) >= most * scale else ahead / scale

    def _noises(
        self,
        rewards: Mapping[str, float],
        baselines: Mapping[str, tuple[float, float]],
        problems: Mapping[str, int],
    ) -> dict[str, float]:
        """Upper bound of each gain's noise, as a variance in the gain's units."""
        reward_noises = {client: reward * (1 - reward) / problems[client] for client, reward in rewards.items()}
        clients, most = len(rewards), LARGEST[self.gain] ** 2
        noises = {}
        for client, (baseline, scale) in baselines.items():
            if self.baseline == "peers":
                noise = (1 - 2 / clients) * reward_noises[client] + sum(reward_noises.values()) / clients**2
            else:
                noise = reward_noises[client] + self._left(client) * baseline * (1 - baseline) / problems[client]
            # What is clipped to a range varies by no more than the square of half of its width.
            noises[client] = noise / scale**2 if noise < most * scale**2 else most
        return noises

    def _left(self, client: str) -> float:
        """Noise of a client's baseline, in units of the noise of one round's reward."""
        history = self._histories[client]
        if self.baseline == "window":
            return 1 / len(history.last)
        limit = self.beta / (2 - self.beta)
        return limit + (1 - limit) * (1 - self.beta) ** (2 * (history.rounds - 1))

    def _remember(self, client: str, reward: float) -> None:
        history = self._histories.setdefault(client, _History())
        history.rounds += 1
        if self.baseline == "window":
            history.last = [*history.last, reward][-self.window :]
            history.mean = sum(history.last) / len(history.last)
            history.square = sum((r - history.mean) ** 2 for r in history.last) / len(history.last)
        elif history.rounds == 1:
            history.mean = reward
        else:
            ahead = reward - history.mean
            history.mean += self.beta * ahead
            history.square = (1 - self.beta) * (history.square + self.beta * ahead * ahead)

    def state(self) -> dict[str, Any]:
        """All clients' histories as a JSON object, for the checkpoint."""
        return {client: asdict(history) for client, history in self._histories.items()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore the histories that `state` gave.

        Raises:
            ValueError: something that is no such state.
        """
        try:
            self._histories = {
                str(client): _History(
                    float(h["mean"]), float(h["square"]), int(h["rounds"]), [float(r) for r in h["last"]]
                )
                for client, h in state.items()
            }
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no state of FGRPO weights ({error})") from None
