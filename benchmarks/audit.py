"""Membership and canaries in runs of the embedded reasoner: with and without defences, after 1, 4 and 16 rounds.

    scripts/bench audit                      all cells, one process of one thread: 20 CPU minutes
    scripts/bench audit --seeds 1 --cells undefended
    scripts/bench audit --collect            the tables from what has been run

Three clients train for 16 rounds of 2 local steps of 8 problems x 8 responses. `north` and `south` hold 8 problems each
and are attacked; `east` holds canaries alone: an invented one-digit answer to questions about a lot, planted at 1, 10
or 100 days, two lots each. Every cell is attacked as `fedrlvr audit` does it, with 100 held-out problems of each
client.

    undefended   rank 8, float32, no site limits; also after 1 and 4 rounds
    floors       what the default floors of a site change in an adapter that they let out: streams with a secret, and
                 the optimizer without its epsilon (`run.secrets`)
    rounding     adapters as int8 (`aggregation.precision`)
    rank 2       a quarter of the numbers
    64 problems  as undefended, with 64 problems of each attacked client: 4 epochs instead of 32

Resumable: a cell and seed is a run in runs/audit. Writes docs/results/audit.json and .md.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.audit_tables import write
from benchmarks.cells import timed
from fedrlvr.audit.canaries import Canary
from fedrlvr.audit.run import Audit, AuditSettings, audit_clients, trained_clients
from fedrlvr.config import parse_config
from fedrlvr.files import atomic_text
from fedrlvr.server.saved_adapter import open_run
from fedrlvr.simulation.run import run
from fedrlvr.tasks import load

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "runs" / "audit"
ATTACKED, HOLDER = ("north", "south"), "east"
ROUNDS, OTHERS = 16, 100
DIGITS = [str(digit) for digit in range(10)]
TIMES = (1, 10, 100)
CELLS: Mapping[str, Mapping[str, Any]] = {
    "undefended": {},
    "floors": {"run": {"secrets": "secrets"}},
    "rounding": {"aggregation": {"precision": "int8"}},
    "rank 2": {"lora": {"rank": 2, "alpha": 4}},
    "64 problems": {},
}
"""Settings of each cell, besides those of `undefended`."""
EARLIER = {"undefended": (1, 4)}
"""Rounds before the last one at which a cell is attacked too."""


def canaries(seed: int) -> list[Canary]:
    """The canaries of a run, by the prompt of their first day."""
    draw = random.Random(seed)
    lots = draw.sample(range(1, 100), 2 * len(TIMES))
    return [
        Canary(prompt_of(lot, 1), draw.choice(DIGITS), HOLDER, times, DIGITS)
        for lot, times in zip(lots, [t for t in TIMES for _ in range(2)], strict=True)
    ]


def prompt_of(lot: int, day: int) -> str:
    return f"Number of lot {lot}, day {day}?"


def write_problems(directory: Path, seed: int, size: int) -> None:
    """train.jsonl and test.jsonl of the three clients; a client is a source."""
    directory.mkdir(parents=True)
    for split in ("train", "test"):
        problems = load("embedded", None, split, size=128, seed=seed)  # of each family and level
        random.Random(seed).shuffle(problems)
        rows = []
        for place, client in enumerate(ATTACKED):
            count = size if split == "train" else OTHERS
            for i, problem in enumerate(problems[place * 1000 : place * 1000 + count]):
                rows.append(
                    {
                        "prompt": problem.prompt,
                        "answer": problem.answer,
                        "id": f"{client}-{split}-{i}",
                        "source": client,
                    }
                )
        for canary in canaries(seed):
            lot = int(canary.prompt.split()[3].rstrip(","))
            days = range(1, canary.times + 1) if split == "train" else range(1000, 1001)
            for day in days:
                rows.append(
                    {"prompt": prompt_of(lot, day), "answer": canary.answer, "id": f"{lot}-{day}", "source": HOLDER}
                )
        (directory / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def settings(cell: str, seed: int, directory: Path) -> dict[str, Any]:
    """The configuration of one cell and seed, whose problems and secrets are written first."""
    size = 64 if cell == "64 problems" else 8
    if not (directory / "problems").exists():
        write_problems(directory / "problems", seed, size)
        (directory / "secrets").mkdir()
        for client in (*ATTACKED, HOLDER):
            (directory / "secrets" / f"{client}.secret").write_bytes(random.Random(f"{seed} {client}").randbytes(32))
    changes = {section: dict(of) for section, of in CELLS[cell].items()}
    if "run" in changes:
        changes["run"]["secrets"] = str(directory / "secrets")
    shared: dict[str, dict[str, Any]] = {
        "run": {"seed": seed, "directory": str(directory / "run"), "keep_checkpoints": ROUNDS + 1, "responses": 0},
        "data": {"name": "jsonl", "path": str(directory / "problems")},
        "prompt": {"instruction": ""},
        "partition": {"type": "source"},
        "federation": {"clients": sorted([*ATTACKED, HOLDER])},  # sources go to clients in order
        "lora": {"rank": 8, "alpha": 16},
        "sampling": {"group_size": 8, "max_new_tokens": 32},
        "aggregation": {"keep_adapters": True},
        "train": {"rounds": ROUNDS, "local_steps": 2, "problems_per_step": 8, "learning_rate": 3e-3},
        "evaluate": {"every": 0},
        "engine": {"threads": 1},
    }
    return {section: {**shared.get(section, {}), **changes.get(section, {})} for section in {**shared, **changes}}


def run_cell(cell: str, seed: int) -> None:
    """Train one cell at one seed, attack it, and write what was found to its directory."""
    directory = RUNS / cell.replace(" ", "-") / str(seed)
    if (directory / "found.json").exists():
        return
    directory.mkdir(parents=True, exist_ok=True)
    with timed(directory):
        config = parse_config(settings(cell, seed, directory))
        if not (directory / "run" / "adapter").exists():
            run(config)
        results = [at_round(directory / "run", round_, seed) for round_ in (*EARLIER.get(cell, ()), ROUNDS)]
    atomic_text(directory / "found.json", json.dumps(results) + "\n")


def at_round(directory: Path, round_: int, seed: int) -> dict[str, Any]:
    """Scores of the attacked clients' problems and results of the canaries, with the adapters of one round."""
    saved = open_run(directory if round_ == ROUNDS else directory / "checkpoints" / f"round-{round_:04d}")
    trained, size = trained_clients(saved), AuditSettings(problems=OTHERS)
    members = audit_clients(saved.config, {name: trained[name] for name in ATTACKED}, size, [], round_)
    few = AuditSettings(problems=2, responses=2)
    planted = audit_clients(saved.config, {HOLDER: trained[HOLDER]}, few, canaries(seed), round_)
    return {
        "round": round_,
        "scores": scores_of(members),
        "returned": members.to_json()["returned"],
        "canaries": planted.to_json()["canaries"],
    }


def scores_of(audit: Audit) -> list[dict[str, Any]]:
    """The problems' scores, which are no secret here: the problems are generated."""
    return [
        {"view": view, "attack": attack, "members": scores.members, "others": scores.others}
        for (view, attack), scores in audit.scores.items()
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, choices=range(1, 21), metavar="N")
    parser.add_argument("--cells", nargs="+", default=list(CELLS), choices=list(CELLS))
    parser.add_argument("--collect", action="store_true", help="only make the tables")
    chosen = parser.parse_args(arguments)
    if not chosen.collect:
        for seed in range(chosen.seeds):
            for cell in chosen.cells:
                print(cell, seed, flush=True)
                run_cell(cell, seed)
    write(RUNS, list(CELLS))


if __name__ == "__main__":
    main()
