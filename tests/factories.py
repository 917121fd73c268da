"""Where tests make an adapter, a strategy, a request, a run's terms and a site, and say what is special about it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from fedrlvr.adapter import Adapter, Factors
from fedrlvr.config import Config, parse_config
from fedrlvr.config.federation import FederationConfig
from fedrlvr.deployment.site.config import Organisation, load_site
from fedrlvr.deployment.terms import Terms
from fedrlvr.errors import ConfigError
from fedrlvr.files import private_directory
from fedrlvr.privacy.card import Card, digest_of
from fedrlvr.reporting.observer import Observer
from fedrlvr.server.strategy import FederatedRLVR
from fedrlvr.wire.messages import TrainRequest

NAMES = {1: "ann", 2: "bob", 3: "cyd"}
"""Clients by node."""
SHAPES = {"up": (4, 3), "down": (3, 4)}
"""d and k of each layer; the layers are not in alphabetical order."""

Shapes = Mapping[str, tuple[int, int]]

EVERYTHING = [0.0, 1e9]
FLOORS_OFF: dict[str, Any] = {
    "messages_per_day": 1_000_000,
    "evaluations_per_day": 1_000_000,
    "own_adapter": True,
    "prompt_filter": True,
    **dict.fromkeys(("learning_rate", "probe_learning_rate", "beta1", "beta2", "weight_decay"), EVERYTHING),
    **dict.fromkeys(("max_grad_norm", "clip_low", "clip_high", "kl_beta", "proximal_mu"), EVERYTHING),
    **dict.fromkeys(("temperature", "top_p", "lora_scale"), EVERYTHING),
    **dict.fromkeys(("factor_value", "update_norm"), 1e30),
    "least_problems": 1,
    "least_group_size": 2,
    "least_new_tokens": 1,
    "least_learned": 0,
    "least_tokens": 0,
    "least_positions": 0.0,
    "largest_ratio": 1e30,
    "problem_share": 1.0,
    "least_scored": 1,
    "round_numbers": False,
}
"""[limits] of a site that lets everything leave as it is, for runs of two problems that must equal a simulation's."""


def write_secret(path: Path, name: str) -> None:
    """A client's sampling secret, the same wherever it is written."""
    private_directory(path.parent)
    path.write_bytes(hashlib.sha256(name.encode()).digest())
    path.chmod(0o600)


def make_adapter(value: float = 0.0, rank: int = 2, alpha: float = 4.0, shapes: Shapes = SHAPES) -> Adapter:
    """An adapter whose every number is `value`."""
    layers = {n: Factors(torch.full((rank, k), value), torch.full((d, rank), value)) for n, (d, k) in shapes.items()}
    return Adapter(layers, alpha)


def random_adapter(seed: int, rank: int = 2, alpha: float = 4.0, shapes: Shapes = SHAPES) -> Adapter:
    """An adapter of random numbers in both factors of each layer."""
    generator = torch.Generator().manual_seed(seed)
    layers = {
        name: Factors(torch.randn(rank, k, generator=generator), torch.randn(d, rank, generator=generator))
        for name, (d, k) in shapes.items()
    }
    return Adapter(layers, alpha)


def adapter_from(a: Sequence[Sequence[float]], b: Sequence[Sequence[float]], alpha: float, name: str = "q") -> Adapter:
    """An adapter of one layer with these A and B."""
    return Adapter({name: Factors(torch.tensor(a), torch.tensor(b))}, alpha)


def make_strategy(
    names: Mapping[int, str] = NAMES,
    *,
    rank: int | Mapping[str, int] = 2,
    rounds: int = 2,
    start: Adapter | None = None,
    public: Any = None,
    probes: int | None = None,
    **settings: Any,
) -> FederatedRLVR:
    """A strategy over clients by node that starts from an adapter of zeros.

    settings: of [federation] (quorum=0.6) or [aggregation] (weights="fgrpo"), or whole sections by their name.
    """
    tree: dict[str, Any] = {
        "lora": {"rank": rank, "alpha": 4.0},
        "federation": {"clients": list(names.values())},
        "aggregation": {},
        "train": {"rounds": rounds},
    }
    for name, value in settings.items():
        if isinstance(value, Mapping):
            tree[name] = {**tree.get(name, {}), **value}
        else:
            tree["federation" if name in FederationConfig.model_fields else "aggregation"][name] = value
    config = parse_config(tree)
    adapter = make_adapter(0.0, config.lora.largest) if start is None else start
    return FederatedRLVR(config, dict(names), adapter, Observer(), public, probes)


def make_request(config: Config | None = None, **changes: Any) -> TrainRequest:
    """A request to train all local steps of round 1."""
    config = config or Config()
    fields: dict[str, Any] = {
        "round": 1,
        "seed": config.run.seed,
        "sampling": config.sampling,
        "steps": config.train.local_steps,
        "train": config.train,
        "supervision": config.supervision,
    }
    return TrainRequest.model_validate({**fields, **changes})


def make_terms(client: str = "ann", **changes: Any) -> Terms:
    """The terms in a server's messages to one of three clients."""
    fields: dict[str, Any] = {
        "run": "run-1",
        "client": client,
        "clients": 3,
        "rounds": 5,
        "task": "main",
        "model": "embedded",
        "model_id": "m",
        "weights_id": "w",
        "tokenizer_id": "t",
        "rank": 4,
        "largest": 4,
        "alpha": 8.0,
    }
    return Terms(**fields | changes)


def make_card(data: bytes = b"bytes", **changes: Any) -> Card:
    """The card of a reply with these bytes."""
    fields: dict[str, Any] = {
        "kind": "adapter",
        "size": len(data),
        "digest": digest_of(data),
        "parts": "adapter",
        "server": "hub.example:18000",
        "run": "first",
        "round": 3,
        "message_type": "train",
        "task": "main",
        "model": "embedded",
        "problems": 40,
        "asked_at": 1.0,
        "expires_at": 100.0,
    }
    return Card.model_validate(fields | changes)


def make_site(directory: Path, **changes: Any) -> Organisation:
    """An organisation whose site.toml has the least settings and these. None takes a setting out."""
    return load_site(write_site(directory, **changes))


def inline(value: Any) -> str:
    """A value as TOML on one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {inline(item)}" for key, item in value.items()) + "}"
    return "[" + ", ".join(map(inline, value)) + "]" if isinstance(value, list) else json.dumps(value)


def write_site(directory: Path, **changes: Any) -> Path:
    """The file of `make_site`, usable or not. JSON's strings, numbers, booleans and lists are TOML's too."""
    tree: dict[str, Any] = {
        "name": directory.name,
        "superlink": "127.0.0.1:9092",
        "tasks": {"main": {"name": "jsonl", "path": "problems"}},
        "models": {"embedded": "embedded"},
    }
    tree = {key: value for key, value in {**tree, **changes}.items() if value is not None}
    lines = [f"{key} = {json.dumps(value)}" for key, value in tree.items() if not isinstance(value, Mapping)]
    for key, value in tree.items():
        if isinstance(value, Mapping):
            lines.append(f"[{key}]")
            lines += [f"{json.dumps(k)} = {json.dumps(v)}" for k, v in value.items() if not isinstance(v, Mapping)]
            for name, inner in value.items():
                if isinstance(inner, Mapping):
                    lines.append(f"[{key}.{json.dumps(name)}]")
                    lines += [f"{k} = {inline(v)}" for k, v in inner.items()]
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "site.toml").write_text("\n".join(lines) + "\n", "utf-8")
    return directory / "site.toml"


def refused(tree: dict[str, Any]) -> str:
    """The error that a user reads; it must be one line and name the file."""
    with pytest.raises(ConfigError) as caught:
        parse_config(tree, where="exp.toml")
    text = str(caught.value)
    assert text.startswith("exp.toml: ")
    assert "\n" not in text
    return text
