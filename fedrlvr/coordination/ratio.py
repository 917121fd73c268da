"""What the policy ratio of a foreign response is taken against.

With p the receiver's policy as it is trained, p_old the receiver's policy before the public steps, q the sender's:

    local_old  rho = p / p_old                        known for PubSwap (2604.12160), by a third party's note
    behaviour  rho = p / q                            importance sampling; needs the sender's log-probs
    truncated  rho = p / p_old, weight min(p_old / q, cap)     truncated importance sampling, as F-TIS (2605.22537)
    shaped     rho = p / (p + gamma)                  LUFFY (2504.14945), gamma = 0.1 there

`local_old` starts at 1 and corrects for nothing: the foreign response counts as if the receiver had sampled it. That
is biased on purpose, and what the paper is said to do. `behaviour` is clipped like any ratio, so a token that the
receiver holds much likelier than the sender did has no gradient. The other two are ours to offer, with the formulas of
their sources as we read them; the weight is per token and carries no gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

RatioRule = Literal["local_old", "behaviour", "truncated", "shaped"]
RATIO_RULES: tuple[RatioRule, ...] = ("local_old", "behaviour", "truncated", "shaped")
NEEDS_SENDER: frozenset[str] = frozenset({"behaviour", "truncated"})
"""Rules for which the sender's log-probs must travel."""
NEEDS_LOCAL: frozenset[str] = frozenset({"local_old", "truncated"})
"""Rules for which the receiver must score foreign tokens before it trains on them."""
CAP, GAMMA = 2.0, 0.1


@dataclass(frozen=True, slots=True)
class Reference:
    """How a foreign response enters the loss: its behaviour log-probs, token weights (None: 1) and shaping gamma."""

    behaviour_logps: list[float]
    weights: list[float] | None = None
    shaping: float = 0.0


def reference(
    rule: RatioRule,
    *,
    tokens: int,
    local_logps: Sequence[float] = (),
    sender_logps: Sequence[float] = (),
    cap: float = CAP,
    gamma: float = GAMMA,
) -> Reference:
    """The reference of one foreign response of `tokens` tokens.

    local_logps, sender_logps: of its tokens under p_old and q; those the rule does not need are not looked at.

    Raises:
        ValueError: an unknown rule, or log-probs the rule needs and that are not one for each token.
    """
    if rule not in RATIO_RULES:
        raise ValueError(f"rule must be one of {', '.join(RATIO_RULES)}, got {rule!r}")
    if rule == "shaped":
        return Reference([0.0] * tokens, None, gamma)
    for logps, needs, whose in ((local_logps, NEEDS_LOCAL, "receiver"), (sender_logps, NEEDS_SENDER, "sender")):
        if rule in needs and len(logps) != tokens:
            raise ValueError(f"the ratio {rule!r} needs the {whose}'s log-probs of {tokens} tokens, got {len(logps)}")
    if rule == "behaviour":
        return Reference(list(sender_logps))
    if rule == "local_old":
        return Reference(list(local_logps))
    ceiling = math.log(cap)  # compared before the exponential, which would overflow
    weights = [math.exp(min(p - q, ceiling)) for p, q in zip(local_logps, sender_logps, strict=True)]
    return Reference(list(local_logps), weights)
