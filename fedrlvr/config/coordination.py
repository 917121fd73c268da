"""The section of the second seam: what clients exchange besides adapters.

Tables of methods, and lists of options, stand beside the algorithms and are taken from there.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from fedrlvr.config.sections import OnlyWith, Section
from fedrlvr.coordination.ratio import RATIO_RULES, RatioRule
from fedrlvr.coordination.swapping import SWAP_RULES, SwapRule


class NoCoordination(Section):
    """Clients exchange nothing except their adapters."""

    type: Literal["none"] = "none"


TRADING = [name for name, rule in SWAP_RULES.items() if rule.trades]


class PubSwapCoordination(Section):
    """Clients exchange responses to public problems: others' correct ones replace a client's incorrect ones (PubSwap,
    arXiv 2604.12160).

    docs/methods.md, section 4. Needs data.public_size.
    """

    type: Literal["pubswap"] = "pubswap"
    swap: Literal[tuple(SWAP_RULES)] = "balanced"  # type: ignore[valid-type]
    """Responses that are replaced: `balanced` replaces incorrect ones up to half of the group; `random` replaces as
    many, at random positions; `full` replaces all incorrect ones; `none` replaces nothing, so that clients only take
    steps on public problems."""
    ratio: Annotated[Literal[tuple(RATIO_RULES)], OnlyWith("swap", TRADING)] = "local_old"  # type: ignore[valid-type]
    """Policy ratio of the tokens of another client's response: against the receiver's policy before the step
    (`local_old`), against the sender's (`behaviour`), or weighted (`truncated`, `shaped`). The formulas are in
    docs/methods.md, section 4."""
    gamma: Annotated[float | None, OnlyWith("ratio", ("shaped",))] = Field(None, gt=0)
    """Constant gamma of the ratio p / (p + gamma) with ratio = 'shaped'. Unset: 0.1."""
    exchanges: int = Field(1, ge=1)
    """Number of exchanges in a round; they divide its local steps into equal parts."""
    public_problems: int = Field(8, ge=1, le=4096)
    """Number of public problems in an exchange, the same for all clients; each gets sampling.group_size responses."""
    public_steps: int = Field(1, ge=1, le=64)
    """Number of optimizer steps on the groups of one exchange."""
    pool_size: int = Field(64, ge=1, le=65536)
    """Largest number of correct responses that the pool of an exchange keeps for each public problem."""
    pool_tail: int = Field(200, ge=0, le=2000)
    """Largest number of characters behind the answer of a response that enters the pool. Raise it if honest responses
    end later (`dropped_tail` in metrics.jsonl). It has no effect with a reward function of your own."""
    pool_length: float = Field(4.0, ge=1, le=16)
    """Largest number of tokens of a response that enters the pool, as a multiple of the usual number: the median over
    the other clients of each client's median in the exchange. Raise it if honest responses are left out
    (`dropped_unusual` in metrics.jsonl)."""

    @property
    def swap_rule(self) -> SwapRule:
        """Swap rule that the setting `swap` names."""
        return SWAP_RULES[self.swap]

    @property
    def ratio_rule(self) -> RatioRule:
        """Rule for the policy ratios of foreign tokens, by the setting `ratio`."""
        return RATIO_RULES[self.ratio]

    def check(self, config: Any) -> None:
        """The exchanges fit into a round, and their problems into the public set."""
        for name, most in (("exchanges", "train.local_steps"), ("public_problems", "data.public_size")):
            section, setting = most.split(".")
            wanted, room = getattr(self, name), getattr(getattr(config, section), setting)
            if wanted > room:
                raise ValueError(f"coordination.{name} = {wanted} is more than {most} = {room}; change one of them")


Coordination = Annotated[NoCoordination | PubSwapCoordination, Field(discriminator="type")]
