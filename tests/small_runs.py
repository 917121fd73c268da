"""Runs of a second: a tiny random model, a dozen problems, and a reward that a random model earns half the time."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

CLIENTS = ("ann", "bob", "cyd")

Configs = Callable[..., dict[str, Any]]
"""Settings for a run directory, with changes by section."""
Runs = Callable[[str], Path]
"""The directory of an uninterrupted run by its variant."""

VARIANTS: dict[str, dict[str, Mapping[str, Any]]] = {
    "all": {"train": {"rounds": 5}},
    "some": {"train": {"rounds": 5}, "federation": {"fraction": 0.6}},
    "local": {"train": {"rounds": 5}, "federation": {"arm": "local"}},
    "moments": {
        "train": {"rounds": 5, "optimizer_state": "keep", "schedule": "cosine", "warmup_steps": 2},
        "aggregation": {"server_learning_rate": 1},
    },
    "fgrpo": {"train": {"rounds": 5}, "federation": {"fraction": 0.6}, "aggregation": {"weights": "fgrpo"}},
    "pubswap": {
        "train": {"rounds": 5, "local_steps": 3, "proximal_mu": 0.1},
        "data": {"public_size": 6},
        "federation": {"fraction": 0.6},
        "coordination": {"type": "pubswap", "exchanges": 2, "public_problems": 2, "public_steps": 2},
    },
    "rolora": {
        "train": {"rounds": 5, "optimizer_state": "keep"},
        "federation": {"fraction": 0.6},
        "aggregation": {"type": "rolora", "precision": "int8"},
    },
    "flora": {
        "train": {"rounds": 5},
        "lora": {"rank": {"ann": 2, "bob": 4, "cyd": 1}},
        "federation": {"fraction": 0.6},
        "aggregation": {"type": "flora", "weights": "fgrpo"},
    },
    "fedex": {
        "train": {"rounds": 5},
        "data": {"public_size": 6},
        "coordination": {"type": "pubswap", "exchanges": 1, "public_problems": 2},
        "aggregation": {"type": "fedex", "precision": "float16"},
    },
    "finish": {"train": {"rounds": 5}, "federation": {"fraction": 0.6}, "personal": {"type": "finish", "steps": 2}},
    "step": {
        "train": {"rounds": 5},
        "federation": {"fraction": 0.6},
        "aggregation": {
            "server_learning_rate": "auto",
            "server_agreement": "clients",
            "server_optimizer": "momentum",
            "server_momentum": 0.3,
            "precision": "int8",
            "precision_down": "bfloat16",
        },
    },
    "step on products": {
        "train": {"rounds": 5},
        "lora": {"rank": {"ann": 2, "bob": 4, "cyd": 1}},
        "aggregation": {
            "type": "flexlora",
            "server_learning_rate": 0.7,
            "server_optimizer": "nesterov",
            "server_momentum": 0.3,
            "precision_down": "int8",
        },
    },
}
"""Runs of five rounds: everybody trains, two of three do, each alone, by plain means with moments kept between rounds,
weighed by FGRPO, with exchanges (between two of three, held back by FedProx); one half of the adapter a round, as small
as it can be sent; a changed base with mixed ranks; one with exchanges; personal adapters at the end; and a server's
step on factors and on products, whose adapter is sent rounded."""


def parity(completion: str, answer: str, **info: Any) -> float:
    """1 if the letters' numbers sum to an even one. Learnable a little, and different within nearly every group."""
    return float(sum(map(ord, completion)) % 2 == 0)


def length_of(completion: str, answer: str, **info: Any) -> float:
    """The number of characters, and 2: a reward that is never below 1."""
    return 2.0 + len(completion)


def hangs(completion: str, answer: str, **info: Any) -> float:
    """A reward that nobody lives to see."""
    time.sleep(3600)
    return 0.0


def zero(completion: str, answer: str, **info: Any) -> float:
    """A reward from which nothing is learnt."""
    return 0.0


def not_a_number(completion: str, answer: str, **info: Any) -> float:
    """A reward that is none."""
    return float("nan")


def tells_all(completion: str, answer: str, **info: Any) -> float:
    """A reward whose error would give everything away."""
    raise ValueError(f"{answer} is not {completion}")


def write_problems(directory: Path, clients: Sequence[str] = CLIENTS, train: int = 8, test: int = 4) -> Path:
    """`train` and `test` problems of each client in train.jsonl and test.jsonl; each client is a source."""
    directory.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", train), ("test", test)):
        rows = [
            {"prompt": f"{split} {i} of {client}?", "answer": str(i), "id": f"{client}-{split}-{i}", "source": client}
            for client in clients
            for i in range(count)
        ]
        (directory / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return directory


def settings(model: Path, problems: Path, directory: Path | None, **changes: Mapping[str, Any]) -> dict[str, Any]:
    """A run of two rounds of two steps; `changes` go into the sections they name."""
    tree: dict[str, dict[str, Any]] = {
        "run": {"seed": 3},
        "model": {"name": str(model), "device": "cpu"},
        "lora": {"rank": 4, "alpha": 8.0},
        "data": {"name": "jsonl", "path": str(problems), "rewards": "small_runs:parity"},
        "prompt": {"instruction": ""},
        "partition": {"type": "source"},
        "federation": {"clients": list(CLIENTS)},
        "sampling": {"group_size": 4, "max_new_tokens": 8},
        "train": {"rounds": 2, "local_steps": 2, "problems_per_step": 2, "learning_rate": 1e-2},
        "engine": {"threads": 1},
    }
    if directory is not None:
        tree["run"]["directory"] = str(directory)
    for section, values in changes.items():
        tree[section] = {**tree.get(section, {}), **values}
    return tree


def _toml(value: Any) -> str:
    """A value in TOML, which shares strings, numbers and booleans with JSON."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} = {_toml(item)}" for name, item in value.items()) + "}"
    return f"[{', '.join(map(_toml, value))}]" if isinstance(value, list) else json.dumps(value)


def write_toml(path: Path, tree: Mapping[str, Mapping[str, Any]]) -> Path:
    """The settings as a file."""
    lines = []
    for section, values in tree.items():
        lines.append(f"[{section}]")
        lines += [f"{key} = {_toml(value)}" for key, value in values.items()]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def without_seconds(directory: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what differs from one run to the next."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text("utf-8").splitlines()]
    for part in [*lines, *(line["personal"] for line in lines if "personal" in line)]:
        del part["seconds"]
        for numbers in part["clients"].values():
            for key in [key for key in numbers if key.startswith("seconds_")]:
                del numbers[key]
    return lines


def adapter_bytes(directory: Path) -> dict[str, bytes]:
    """Every exported adapter file of a run, by its path within `adapter/`."""
    root = directory / "adapter"
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*.safetensors"))}


_workers = multiprocessing.get_context("forkserver")
_workers.set_forkserver_preload(
    [
        "fedrlvr.simulation.run",
        "transformers.models.llama.modeling_llama",
        "fedrlvr.cli.main",
    ]
)


def _command(arguments: list[str], out: str, largest_file: int | None) -> None:
    file = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    if largest_file is not None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    from fedrlvr.cli.main import main

    main(arguments)


def start_command(arguments: Sequence[str], out: Path, largest_file: int | None = None) -> BaseProcess:
    """`fedrlvr ARGUMENTS` in a process of its own, forked from one that has the imports done.

    out: takes what it prints. largest_file: bytes beyond which every write fails, as on a disk that is full.
    """
    process = _workers.Process(target=_command, args=(list(arguments), str(out), largest_file))
    process.start()
    return process


def exchanges(tmp: Path, **changes: dict[str, Any]) -> dict[str, Any]:
    """Two rounds of three local steps and two exchanges about two of six public problems."""
    coordination = {"type": "pubswap", "exchanges": 2, "public_problems": 2, **changes.pop("coordination", {})}
    train = {"local_steps": 3, **changes.pop("train", {})}
    data = {"public_size": 6, **changes.pop("data", {})}
    return {"train": train, "data": data, "coordination": coordination, **changes}


def lines(directory: Path) -> list[dict[str, Any]]:
    """The records in a run's metrics.jsonl."""
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text("utf-8").splitlines()]
