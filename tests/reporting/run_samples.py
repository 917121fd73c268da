"""Records in the shape of metrics.jsonl, small enough to check by hand."""

from __future__ import annotations

from typing import Any


def score(n: int, total: float, squares: float | None = None) -> dict[str, float]:
    """Sums of n rates; without squares, of rates that are all 0 or 1."""
    return {"n": n, "total": total, "squares": total if squares is None else squares}


def numbers(reward: float | None = 0.5, **more: Any) -> dict[str, Any]:
    """A client's numbers of a round it trained in."""
    return {
        "reward": reward,
        "pass@1": 0.25,
        "zero_variance_groups": 0.5,
        "response_length": 12.0,
        "kl_to_base": 0.001,
        "ratio_mean": 1.0,
        "ratio_max": 1.2,
        "clip_fraction": 0.01,
        "grad_norm": 0.3,
        "tokens_sampled": 100,
        "tokens_trained": 60,
        "bytes_up": 1000,
        "bytes_down": 2000,
        "seconds_sample": 1.0,
        "seconds_train": 2.0,
        **more,
    }


def run_records(rounds: int = 2, evaluated: tuple[int, ...] = (0, 2)) -> list[dict[str, Any]]:
    """Two clients; alpha holds `sum`, beta holds `sum` and `dose`."""
    records = []
    for round_ in range(rounds + 1):
        clients = {"alpha": numbers(0.1 * round_), "beta": numbers(0.2 * round_)} if round_ else {}
        if not round_:
            clients = {name: {"bytes_up": 10, "bytes_down": 500} for name in ("alpha", "beta")}
        record: dict[str, Any] = {"round": round_, "clients": clients, "seconds": {"train": 4.0} if round_ else {}}
        if round_ in evaluated:
            record["evaluate"] = {
                "alpha": {"sum": score(10, 2 + round_)},
                "beta": {"dose": score(20, 10 + round_), "sum": score(10, 4 + round_)},
            }
            record["seconds"]["evaluate"] = 1.5
        records.append(record)
    return records
