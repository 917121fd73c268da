"""The start of a run: a fresh adapter, or the one of `model.adapter`.

A given adapter of lora.rank or less becomes the adapter that is trained; components that lora.rank has beyond it are
fresh. Where the LoRA rule restarts the adapter in every round (flora), or changes the base weights and the given
adapter has a higher rank (fedex), the given adapter is added to the base weights instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from fedrlvr.adapter import Adapter, Factors
from fedrlvr.aggregation.stacking import add
from fedrlvr.config import Config
from fedrlvr.errors import AdapterError
from fedrlvr.policy.peft_format import in_model_order, load_peft
from fedrlvr.server.saved_adapter import load_adapter

START = "start"
"""The directory of a run that keeps the given adapter, which may be deleted where it was."""


@dataclass(frozen=True)
class Beginning:
    """The model that a run starts from.

    adapter: of the largest rank. change: an update of scale 1 on the base weights. given: the adapter that was given,
    whole; None where `adapter` is fresh.
    """

    adapter: Adapter
    change: Adapter | None = None
    given: Adapter | None = None


def beginning(config: Config, directory: Path, fresh: Adapter) -> Beginning:
    """Prepare the model that the run in this directory starts from.

    fresh: an adapter that leaves the model as it is.

    Raises:
        FedrlvrError: model.adapter cannot be read, or is an adapter of another model or of too high a rank.
    """
    if (place := config.model.adapter) is None:
        return Beginning(fresh)
    kept = directory / START
    try:
        given = load_peft(kept) if kept.is_dir() else load_adapter(place)
        like = Adapter(fresh.at_rank(given.rank).layers, given.alpha)
        given = in_model_order(given, like, place=str(place))
    except AdapterError as error:
        raise AdapterError(f"model.adapter: {error}") from None
    rule = config.aggregation.rule
    if rule.restarts or (rule.changes_base and given.rank > fresh.rank):
        return Beginning(fresh, add(given), given)
    _check_rank(given, config)
    return Beginning(_widened(given, fresh), None, given)


def _check_rank(given: Adapter, config: Config) -> None:
    lora, local = config.lora, config.federation.arm == "local"
    ranks = {client: lora.rank_of(client) for client in config.federation.names} if local else {"": lora.largest}
    for client, rank in ranks.items():
        if given.rank > rank:
            owner = f" of {client}" if client and isinstance(lora.rank, dict) else ""
            raise AdapterError(
                f"model.adapter = {str(config.model.adapter)!r} has rank {given.rank}, and lora.rank{owner} is {rank}. "
                "Raise lora.rank, or put the adapter into the weights (fedrlvr export --merged) and give these as "
                "model.name."
            )


def _widened(given: Adapter, fresh: Adapter) -> Adapter:
    """The given update at the rank and alpha of `fresh`, whose further components it takes: their B is zero."""
    ratio, more = given.scale / fresh.scale, fresh.rank - given.rank
    return Adapter(
        {
            name: Factors(
                torch.cat([a, fresh.layers[name].A[given.rank :]]),
                torch.nn.functional.pad(b * ratio, (0, more)),
            )
            for name, (a, b) in given.layers.items()
        },
        fresh.alpha,
    )
