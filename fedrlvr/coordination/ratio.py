"""The policy ratio of a foreign response: its rules and their formulas.

With p the receiver's policy as it is trained, p_old the receiver's policy before the public steps, q the sender's:

    local_old  rho = p / p_old                        known for PubSwap (2604.12160), by a third party's note
    behaviour  rho = p / q                            importance sampling; needs the sender's log-probs
    truncated  rho = p / p_old, weight min(p_old / q, cap)     truncated importance sampling; F-TIS (2605.22537)
                                                      also filters samples, which is not built
    shaped     rho = p / (p + gamma)                  LUFFY (2504.14945), gamma = 0.1 there

A response that another program drew for the receiver itself (engine.sampler = "vllm") is `truncated` too: p_old is then
the receiver's policy as the training pass computes it, and q as that program did.

`local_old` starts at 1 and corrects for nothing: the foreign response counts as if the receiver had sampled it. That
is biased on purpose, and what the paper is said to do. `behaviour` is clipped like any ratio, so a token that the
receiver holds much likelier than the sender did has no gradient. The other two are ours to offer, with the formulas of
their sources as we read them; the weight is per token and carries no gradient.

A new rule is one more entry of `RATIO_RULES`; configuration, server and clients ask the entry.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

CAP, GAMMA = 2.0, 0.1
"""Defaults: the largest weight (train.ratio_cap), and the constant of the shaped ratio."""


@dataclass(frozen=True, slots=True)
class Reference:
    """Terms by which a foreign response enters the loss: its behaviour log-probs, token weights (None: 1) and shaping
    gamma."""

    behaviour_logps: list[float]
    weights: list[float] | None = None
    shaping: float = 0.0


@dataclass(frozen=True, slots=True)
class ForeignTokens:
    """A foreign response as a rule sees it.

    local, sender: log-probs of its `count` tokens under p_old and q; empty where the rule does not need them.
    """

    count: int
    local: Sequence[float]
    sender: Sequence[float]
    cap: float
    gamma: float


@dataclass(frozen=True)
class RatioRule:
    """The properties of one rule for the policy ratio of foreign tokens.

    reference: makes a response's reference.
    needs_local: the receiver scores foreign tokens before it trains on them.
    needs_sender: the sender's log-probs travel.
    """

    reference: Callable[[ForeignTokens], Reference]
    needs_local: bool = False
    needs_sender: bool = False


def _truncated(tokens: ForeignTokens) -> Reference:
    ceiling = math.log(tokens.cap)  # compared before the exponential, which would overflow
    weights = [math.exp(min(p - q, ceiling)) for p, q in zip(tokens.local, tokens.sender, strict=True)]
    return Reference(list(tokens.local), weights)


RATIO_RULES = {
    "local_old": RatioRule(lambda tokens: Reference(list(tokens.local)), needs_local=True),
    "behaviour": RatioRule(lambda tokens: Reference(list(tokens.sender)), needs_sender=True),
    "truncated": RatioRule(_truncated, needs_local=True, needs_sender=True),
    "shaped": RatioRule(lambda tokens: Reference([0.0] * tokens.count, shaping=tokens.gamma)),
}
"""Every rule, by its name in `coordination.ratio`."""


def reference(
    rule: str,
    *,
    tokens: int,
    local_logps: Sequence[float] = (),
    sender_logps: Sequence[float] = (),
    cap: float = CAP,
    gamma: float | None = None,
) -> Reference:
    """The reference of one foreign response of `tokens` tokens.

    local_logps, sender_logps: of its tokens under p_old and q; those the rule does not need are not looked at.
    cap: largest weight. gamma: None: 0.1.

    Raises:
        ValueError: an unknown rule, or log-probs the rule needs and that are not one for each token.
    """
    if rule not in RATIO_RULES:
        raise ValueError(f"rule must be one of {', '.join(RATIO_RULES)}, got {rule!r}")
    entry = RATIO_RULES[rule]
    for party, needed, logps in (
        ("receiver", entry.needs_local, local_logps),
        ("sender", entry.needs_sender, sender_logps),
    ):
        if needed and len(logps) != tokens:
            raise ValueError(f"the ratio {rule!r} needs the {party}'s log-probs of {tokens} tokens, got {len(logps)}")
    return entry.reference(ForeignTokens(tokens, local_logps, sender_logps, cap, gamma or GAMMA))
