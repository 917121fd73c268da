"""`scripts/bench aggregation`: what its cells change, its problems, its attacker, and its tables by hand."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import RecordDict

from benchmarks import aggregation_data, aggregation_tables
from benchmarks.aggregation import Hostile, forged
from benchmarks.aggregation_cells import (
    ATTACKS,
    BASE,
    DEFENCES,
    EIGHT,
    FGRPO,
    HOSTILE,
    PARTS,
    ROUNDS,
    RULES,
    WEIGHTS,
    attack_of,
)
from benchmarks.aggregation_data import (
    DIFFICULTIES,
    FEDERATIONS,
    HOLDERS,
    MISLED,
    SCALES,
    rows,
    scaled,
    write_all,
)
from benchmarks.aggregation_figures import draw
from benchmarks.aggregation_tables import (
    COUNTED,
    goal_table,
    honest_score,
    paired,
    raw_shares,
    robust_table,
    rules_table,
    summary,
    weights_tables,
    worst_score,
)
from fedrlvr.adapter import Adapter, Factors
from fedrlvr.config import load_config
from fedrlvr.tasks.deal import Dealt, deal
from fedrlvr.tasks.problem import Problem
from fedrlvr.wire.messages import ARRAYS, adapter_to_arrays, arrays_to_adapter

CELLS = [(part, cell) for part, cells in PARTS.items() for cell in cells]


@pytest.mark.parametrize(("part", "cell"), CELLS)
def test_every_cell_is_a_configuration_and_no_two_of_a_part_are_one(part: str, cell: str) -> None:
    config = load_config(BASE, PARTS[part][cell])
    steps = (config.train.rounds, config.train.local_steps, config.train.problems_per_step, config.sampling.group_size)
    assert steps == (ROUNDS, *((2, 4) if part == "d" else (3, 8)), 8)
    assert config.data.train_size == 4096
    assert config.federation.names == (EIGHT if part == "d" else config.federation.names)
    alike = [other for other, settings in PARTS[part].items() if load_config(BASE, settings) == config]
    # In (d) one configuration is run by different attackers.
    assert [other for other in alike if attack_of(part, other) == attack_of(part, cell)] == [cell]


def test_cells_are_of_what_they_are_named_for() -> None:
    a, b, c, d = ({cell: load_config(BASE, settings) for cell, settings in PARTS[part].items()} for part in "abcd")
    assert [a[rule].aggregation.type for rule in RULES] == list(RULES)
    assert a["int8"].aggregation.precision == "int8"
    assert [b["mixed/flora"].lora.rank_of(client) for client in HOLDERS] == [2, 4, 8, 16]
    assert b["2/fedit"].lora.rank == 2
    assert {cell for cell, config in c.items() if config.aggregation.weights == "fgrpo"} == {
        f"{federation}/{name}" for federation, names in WEIGHTS.items() for name in names if name in FGRPO
    }
    assert c["difficulty/cold"].aggregation.fgrpo_temperature == 0.25
    assert d["sign/krum"].aggregation.robust == "krum"
    assert [attack_of("d", cell) for cell in ("nobody/none", "sign/none", "scaled/clip", "nan/quorum")] == [
        None,
        "sign",
        "scaled",
        "nan",
    ]
    assert attack_of("c", "scales/fgrpo") is None
    assert {cell.partition("/")[2] for cell in d if cell.startswith("nobody")} == set(DEFENCES)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All problems, written."""
    result = tmp_path_factory.mktemp("data")
    write_all(result)
    return result


@pytest.fixture(scope="module")
def dealt(directory: Path) -> dict[str, Dealt]:
    """The problems that each client holds, by federation of part (c)."""
    result = {}
    for federation in WEIGHTS:
        settings = PARTS["c"][f"{federation}/examples"]
        where = [f"data.path='{directory / federation}'"] if federation in FEDERATIONS else []
        result[federation] = deal(load_config(BASE, [*settings, *where]))
    return result


def test_writing_problems_again_gives_the_same_files(directory: Path, tmp_path: Path) -> None:
    write_all(tmp_path)
    files = sorted(path.relative_to(directory) for path in directory.rglob("*.jsonl"))
    assert len(files) == 2 * len(FEDERATIONS)
    assert all((directory / file).read_bytes() == (tmp_path / file).read_bytes() for file in files)


def test_families_lie_where_the_example_puts_them(dealt: dict[str, Dealt]) -> None:
    for federation in ("even", "scales", "wrong_labels"):
        sites = dealt[federation].clients
        assert {site.name: tuple(sorted({p.source for p in site.train})) for site in sites} == HOLDERS
        assert all((len(site.train), len(site.test)) == (1024, 512) for site in sites)


def test_scaled_rewards_are_all_that_sets_scales_apart(dealt: dict[str, Dealt]) -> None:
    assert dealt["scales"].digest == dealt["even"].digest
    for site in dealt["scales"].clients:
        for problem in (site.answers.everything()[0], site.test[-1]):
            assert site.reward(f"#### {problem.answer}", problem) == SCALES[site.name]
            assert site.reward(f"#### {problem.answer}1", problem) == 0
    assert scaled("#### 7", "7", 1000) == 1000
    assert min(SCALES.values()) >= 1  # a reward below 1 would not count as correct


def test_exactly_half_of_one_clients_training_labels_are_wrong_and_no_others(dealt: dict[str, Dealt]) -> None:
    for right, given in zip(dealt["even"].clients, dealt["wrong_labels"].clients, strict=True):
        assert [p.prompt for p in right.train] == [p.prompt for p in given.train]
        assert [p.answer for p in right.test] == [p.answer for p in given.test]
        pairs = zip(right.answers.everything(), given.answers.everything(), strict=True)
        wrong = Counter(expected.source for expected, actual in pairs if expected.answer != actual.answer)
        assert wrong == (dict.fromkeys(HOLDERS[MISLED], 256) if given.name == MISLED else {})


def test_a_wrong_label_is_the_familys_misconception_or_a_little_too_large() -> None:
    unit = Problem("3 g + 240 mg in mg?", "3240", "unit-easy-1", "unit", "math")
    product = Problem("212 times 3?", "636", "product-easy-1", "product", "math")
    held = [unit, product]
    wrong = aggregation_data._wrong_answer
    assert wrong(unit, np.random) == "243"  # type: ignore[arg-type]
    assert all(1 <= int(wrong(product, aggregation_data.Random(seed))) - 636 <= 9 for seed in range(50))
    assert aggregation_data.mislabelled(held, ["sum"]) == held


def test_clients_of_different_difficulty_hold_one_family_and_level_each(dealt: dict[str, Dealt]) -> None:
    sites = dealt["difficulty"].clients
    assert [site.name for site in sites] == list(DIFFICULTIES)
    for site in sites:
        family, level = DIFFICULTIES[site.name]
        assert {p.source for p in (*site.train, *site.test)} == {site.name}
        assert all(p.id.startswith(f"{family}-{level}-") for p in (*site.train, *site.test))
        assert (len(site.train), len(site.test)) == (1024, 512)


def test_there_are_no_other_federations() -> None:
    with pytest.raises(ValueError, match="no federation"):
        rows("smaller", "train")


def test_what_a_hostile_client_sends_by_hand() -> None:
    start, trained = np.array([1.0, 2.0], np.float32), np.array([1.5, 1.0], np.float32)
    assert forged(start, trained, "sign").tolist() == [0.5, 3.0]
    assert forged(start, trained, "scaled").tolist() == [51.0, -98.0]
    assert np.isnan(forged(start, trained, "nan")).all()
    assert {forged(start, trained, attack).dtype for attack in ATTACKS} == {np.dtype(np.float32)}


def test_only_the_hostile_clients_reply_is_forged_and_from_the_rounds_adapter() -> None:
    def adapter(value: float) -> Adapter:
        return Adapter({"q": Factors(torch.full((1, 2), value), torch.full((3, 1), 2 * value))}, 1.0)

    def reply(node: int) -> Any:
        content = RecordDict({ARRAYS: adapter_to_arrays(adapter(1.5))})
        return SimpleNamespace(metadata=SimpleNamespace(src_node_id=node), content=content)

    seen: dict[str, Adapter] = {}
    clients = {1: "honest", 2: HOSTILE}

    def aggregate_train(server_round: int, replies: list[Any]) -> tuple[None, None]:
        for reply in replies:
            name = clients[reply.metadata.src_node_id]
            seen[name] = arrays_to_adapter(reply.content.array_records[ARRAYS], adapter(0), place=name)
        return None, None

    inner: Any = SimpleNamespace(adapter=adapter(1.0), clients=clients, aggregate_train=aggregate_train)
    Hostile(inner, HOSTILE, "sign").aggregate_train(3, [reply(1), reply(2)])
    assert seen["honest"].layers["q"].A.tolist() == [[1.5, 1.5]]
    assert seen[HOSTILE].layers["q"].A.tolist() == [[0.5, 0.5]]
    assert seen[HOSTILE].layers["q"].B.flatten().tolist() == [1.0] * 3


# Tables, from made-up runs.


def record(round_: int, rewards: dict[str, float], weights: dict[str, float], **more: Any) -> dict[str, Any]:
    """A line of metrics.jsonl."""
    clients = {
        name: {"reward": reward, "weight": weights[name], "bytes_up": 1000 * round_, "bytes_down": 2000 * round_}
        for name, reward in rewards.items()
    }
    return {"round": round_, "clients": clients, "seconds": {"aggregate": 0.01 * round_}, **more}


def scored(**rates: float) -> dict[str, Any]:
    """An evaluation of ten problems of each source, `client_source=rate`."""
    result: dict[str, dict[str, Any]] = {}
    for name, rate in rates.items():
        client, _, source = name.partition("_")
        result.setdefault(client, {})[source] = {"n": 10, "total": 10 * rate, "squares": 10 * rate}
    return result


def made(mean: float, **clients: float) -> dict[str, Any]:
    """The scores of a run in the form that `summary` gives."""
    at = {"mean": mean, "clients": clients, "sources": {}}
    course = {client: [0.5] * ROUNDS for client in clients}
    return {
        "pass@1": {"0": at, "4": at, str(ROUNDS): at},
        "bytes_up": dict.fromkeys(clients, 2000.0),
        "bytes_down": dict.fromkeys(clients, 3000.0),
        "aggregate_seconds": 0.004,
        "reward": course,
        "weight": course,
    }


def test_bytes_are_those_of_rounds_that_nothing_else_travels_in() -> None:
    assert COUNTED == [2, 3, 6, 7]


def test_a_run_is_summed_up_by_hand() -> None:
    both = {"north": 0.5, "east": 0.5}
    records = [record(r, {"north": 0.1 * r, "east": 0.3}, both) for r in range(ROUNDS + 1)]
    del records[3]["clients"]["east"]["weight"]
    records[3]["left_out"] = {"east": "too far"}
    records[0]["evaluate"] = scored(north_sum=0.2, north_unit=0.4, east_dose=0.1)
    records[ROUNDS]["evaluate"] = scored(north_sum=0.6, north_unit=1.0, east_dose=0.5)
    result = summary(records)
    assert result["bytes_up"] == {"east": 4500.0, "north": 4500.0}  # (2 + 3 + 6 + 7) / 4 thousands
    assert result["bytes_down"]["north"] == 9000.0
    assert result["aggregate_seconds"] == pytest.approx(0.045)
    assert result["weight"]["east"] == [0.5, 0.5, None, *[0.5] * 5]
    assert result["reward"]["north"][:2] == pytest.approx([0.1, 0.2])
    assert result["left_out"] == {"east": 1}
    assert "gain" not in result
    last = result["pass@1"][str(ROUNDS)]
    assert last["mean"] == pytest.approx((0.6 + 1.0 + 0.5) / 3)
    assert last["clients"] == pytest.approx({"north": 0.8, "east": 0.5})
    assert last["sources"]["unit"] == pytest.approx(1.0)
    assert worst_score(result) == pytest.approx(50.0)


def test_differences_are_taken_seed_by_seed() -> None:
    arm, baseline = {0: made(0.8), 1: made(0.7)}, {0: made(0.7), 1: made(0.5)}
    # 10 and 20 points: mean 15, standard deviation 7.07, Student's t of one degree of freedom 12.706.
    result = paired(arm, baseline, aggregation_tables.mean_score)
    assert (result.mean, result.half) == (pytest.approx(15.0), pytest.approx(12.706 * 7.0711 / 2**0.5, rel=1e-3))


def test_rules_are_held_against_fedit() -> None:
    cells = {("a", "fedit"): {0: made(0.5, north=0.5), 1: made(0.5, north=0.5)}}
    cells["a", "flora"] = {0: made(0.52, north=0.5), 1: made(0.54, north=0.5)}
    lines = rules_table(cells)[4:]
    assert lines[0] == "| fedit | 50.0 ± 0.0 | 50.0 ± 0.0 |  | 2 | 3 | 4.0 ± 0.0 |"
    assert lines[1].startswith("| flora | 53.0 ± 12.7 | 53.0 ± 12.7 | +3.0 ± 12.7 | 2 | 3 |")
    assert len(lines) == 2


def both_seeds(mean: float, **clients: float) -> dict[int, dict[str, Any]]:
    return {0: made(mean, **clients), 1: made(mean, **clients)}


def test_the_goal_is_judged_by_the_mean_or_the_worst_client() -> None:
    cells = {}
    for federation, (mean, worst) in {
        "even": (-0.005, 0.0),
        "difficulty": (0.0, 0.04),
        "wrong_labels": (0.02, 0.02),
    }.items():
        cells["c", f"{federation}/examples"] = both_seeds(0.5, north=0.4, west=0.6)
        cells["c", f"{federation}/fgrpo"] = both_seeds(0.5 + mean, north=0.4 + worst, west=0.6)
    cells["c", "even/cold"] = both_seeds(0.48, north=0.5, west=0.5)
    rows_ = {line.split(" | ")[0]: line.split(" | ") for line in goal_table(cells)[4:]}
    assert set(rows_) == {"| FGRPO", "| FGRPO, temperature = 0.25"}
    assert rows_["| FGRPO"][1] == "-0.5 ± 0.0 / +0.0 ± 0.0"
    assert rows_["| FGRPO"][-3:] == ["yes", "difficulty", "wrong_labels |"]
    assert rows_["| FGRPO, temperature = 0.25"][-3:] == ["no", "none", "none |"]


def test_weights_by_raw_rewards_would_follow_the_scale() -> None:
    record = made(0.5, north=0.5, west=0.5)
    record["reward"] = {"north": [0.5, 0.2], "west": [500.0, 600.0]}
    assert raw_shares(record, "west") == pytest.approx([500 / 500.5, 600 / 600.2])
    cells = {("c", f"{name}/examples"): both_seeds(0.5, **dict.fromkeys(SCALES, 0.5)) for name in ("even", "scales")}
    for run in cells["c", "scales/examples"].values():
        run["reward"] = {client: [0.5 * scale] * ROUNDS for client, scale in SCALES.items()}
    text = "\n".join(weights_tables(cells))
    assert "both by examples: +0.0 ± 0.0 points" in text
    assert "in round 1: 0." in text
    assert "would weigh 0.900 in `scales`" in text  # 1000 / 1111
    assert "and 0.250 in `even`" in text


def test_honest_families_leave_the_hostile_one_out() -> None:
    assert honest_score(made(0.5, **{"client-1": 0.6, "client-2": 0.8, HOSTILE: 0.0})) == pytest.approx(70.0)


def test_a_run_that_an_attack_ended_is_told_with_its_reason() -> None:
    ended = {"ended": f"round 1, {HOSTILE}: values that are not finite"}
    others = {"client-1": 0.5, "client-2": 0.7}
    left = {**made(0.6, **others), "left_out": {HOSTILE: 8}}
    cells = {
        ("d", "nobody/none"): {0: made(0.5, **others, **{HOSTILE: 0.3})},
        ("d", "nan/none"): {0: ended, 1: ended},
        ("d", "nan/quorum"): {0: left},
    }
    nobody, alone, quorum = robust_table(cells)[4:]
    assert nobody == "| nobody | none | 60.0 |  | 50.0 |  |  |"
    assert alone.endswith(f"|  |  |  |  | 2 of 2: round 1, {HOSTILE}: values that are not finite |")
    assert quorum == f"| nan | quorum = 0.5 | 60.0 | +0.0 | not evaluated | {HOSTILE} 8.0 |  |"


def test_what_has_been_run_becomes_tables_and_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cell counts once all its seeds are done; nothing to show is an error."""
    runs = tmp_path / "runs"
    monkeypatch.setattr(aggregation_tables, "RUNS", runs)
    monkeypatch.setattr(aggregation_tables, "ROOT", tmp_path)
    (tmp_path / "docs" / "results").mkdir(parents=True)
    with pytest.raises(SystemExit, match="no cell"):
        aggregation_tables.write(draw, 2)
    clients = dict.fromkeys(HOLDERS, 0.25)
    lines = [record(r, dict.fromkeys(HOLDERS, 0.5), clients) for r in range(ROUNDS + 1)]
    for r in (0, 4, ROUNDS):
        lines[r]["evaluate"] = scored(north_sum=0.1 * r, east_dose=0.5, south_drip=0.5, west_unit=0.5)
    done = [("c", "even/examples", 2), ("c", "even/fgrpo", 2), ("c", "even/cold", 1), ("d", "sign/none", 2)]
    for part, cell, seeds in done:
        for seed in range(seeds):
            place = runs / part / cell / "as-given" / f"seed-{seed}"
            place.mkdir(parents=True)
            (place / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
            (place / "report.html").write_text("", "utf-8")
        (runs / part / cell / "seconds.json").write_text('{"cpu": 100.0}', "utf-8")
    (runs / "d" / "nan" / "none").mkdir(parents=True)
    (runs / "d" / "nan" / "none" / "failed.json").write_text('{"0": "why", "1": "why"}', "utf-8")
    (runs / "d" / "nan" / "none" / "seconds.json").write_text('{"cpu": 1.0}', "utf-8")
    aggregation_tables.write(draw, 2)
    results = json.loads((tmp_path / "docs" / "results" / "aggregation.json").read_text("utf-8"))
    result = Counter((run["part"], run["cell"]) for run in results["runs"])
    assert result == {("c", "even/examples"): 2, ("c", "even/fgrpo"): 2, ("d", "sign/none"): 2, ("d", "nan/none"): 2}
    text = (tmp_path / "docs" / "results" / "aggregation.md").read_text("utf-8")
    assert "2 in (c), 2 in (d)" in text
    assert "| FGRPO | 57.5 ± 0.0 | +0.0 ± 0.0 | 50.0 ± 0.0 |" in text
    assert "2 of 2: why" in text
    assert sorted(path.name for path in (tmp_path / "docs" / "figures").iterdir()) == [
        "aggregation_robust.svg",
        "aggregation_weights.svg",
    ]
