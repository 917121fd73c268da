"""`scripts/bench care`: what its cells change, and its measures, tables and verdicts by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from benchmarks import care_figures, care_tables
from benchmarks.care_cells import ARMS, BASE, BATCH, BUDGETS, CELLS, FIRST, JUDGED, SETTINGS, overrides
from benchmarks.care_data import (
    FAMILIES,
    Run,
    accuracies,
    added,
    calibration_error,
    collapse,
    collapse_of,
    collapsed,
    course,
    over_seeds,
    recovered,
    recovered_over_seeds,
    summary,
    worst,
)
from benchmarks.care_tables import (
    collapse_table,
    cost_table,
    goals,
    judge_table,
    name,
    probes_share,
    rival,
    score_table,
    shown,
)
from fedrlvr.config import CareSupervision, Config, SelectionSupervision, load_config
from fedrlvr.reporting.spread import Spread, paired
from fedrlvr.supervision.acquisition import quota
from fedrlvr.tasks.deal import deal

T4 = 2.7764
"""Student's t of four degrees of freedom."""


def config(setting: str, arm: str) -> Config:
    return load_config(BASE, overrides(setting, arm))


@pytest.mark.parametrize(("setting", "arm"), CELLS)
def test_every_cell_is_a_configuration_whose_arm_is_named_for_it(setting: str, arm: str) -> None:
    supervision = config(setting, arm).supervision
    kind, _, budget = arm.rpartition("-")
    if isinstance(supervision, CareSupervision | SelectionSupervision):
        assert supervision.type == kind.partition("-")[0]
        # So many problems of a step exactly: a budget is not rounded up to more than it says.
        assert supervision.budget * BATCH == pytest.approx(int(budget) * BATCH / 100, abs=1e-12)
        assert math.ceil(supervision.budget * BATCH) * 100 == int(budget) * BATCH
        assert supervision.audit
        assert supervision.labels_from == "dataset"
    else:
        assert supervision.type == arm
    if isinstance(supervision, SelectionSupervision):
        assert supervision.rest == ("pseudo" if "pseudo" in arm else "masked")
    if isinstance(supervision, CareSupervision):
        assert supervision.trust == (0 if "untrusted" in arm else 0.25)
        assert supervision.min_reliability == (0.5 if "floor" in arm else 0)
        assert supervision.share_probes == ("shared" in arm)
        assert (supervision.worth, supervision.min_auc, supervision.probe_learning_rate) == ("gap", 0, 1e-4)
    if kind == "oracle":
        assert isinstance(supervision, SelectionSupervision)
        assert supervision.worth == "gap"


def test_no_cell_is_run_twice_and_the_most_telling_come_first() -> None:
    assert len(set(CELLS)) == len(CELLS)
    assert CELLS[: 2 * len(FIRST)] == [(setting, arm) for setting in SETTINGS for arm in FIRST]
    assert {arm for _, arm in CELLS} == set(ARMS)
    for setting in SETTINGS:
        assert {f"{kind}-{budget}" for kind in ("care", "random") for budget in BUDGETS} <= {
            arm for place, arm in CELLS if place == setting
        }
        alike = [config(setting, arm) for place, arm in CELLS if place == setting]
        assert all(cell != other for i, cell in enumerate(alike) for other in alike[:i])


@pytest.mark.parametrize("setting", SETTINGS)
def test_no_problem_is_drawn_twice_and_the_arms_differ_in_nothing_but_supervision(setting: str) -> None:
    labels = config(setting, "labels")
    drawn = labels.train.rounds * labels.train.local_steps * labels.train.problems_per_step
    dealt = deal(labels)
    assert all(len(site.train) >= drawn for site in dealt.clients)
    assert {problem.source for site in dealt.clients for problem in site.train} == set(FAMILIES["all"])
    care = config(setting, JUDGED).supervision
    assert isinstance(care, CareSupervision)
    assert quota(care.vote_free, labels.train.rounds * labels.train.local_steps) == 20
    for place, arm in CELLS:
        if place == setting:
            assert config(setting, arm).model_copy(update={"supervision": labels.supervision}) == labels


def test_families_are_those_of_either_kind_of_error() -> None:
    assert FAMILIES["diffuse"] == ["sum", "product", "dose", "drip"]
    assert FAMILIES["systematic"] == ["difference", "remainder", "unit", "score"]
    assert sorted(FAMILIES["all"]) == sorted(FAMILIES["diffuse"] + FAMILIES["systematic"])


# Runs by hand: the diffuse families' accuracy and the systematic ones' at steps 0, 8 and 16.


def run(*scores: tuple[float, float], **more: Any) -> Run:
    by_step = {
        str(8 * i): dict.fromkeys(FAMILIES["diffuse"], d) | dict.fromkeys(FAMILIES["systematic"], s)
        for i, (d, s) in enumerate(scores)
    }
    given = {"pass@1": by_step, "steps": [8 * i for i in range(1, len(scores))], "drawn": 100, "labels": 20}
    return given | {"tokens_sampled": 5000, "tokens_trained": 2000, "seconds_step": 0.2} | more


def runs(*finals: float, begin: float = 0.2, **more: Any) -> dict[int, Run]:
    return {seed: run((begin, begin), (final, final), **more) for seed, final in enumerate(finals)}


def test_accuracies_of_families_by_hand() -> None:
    record = run((0.4, 0.2), (0.3, 0.4), (0.6, 0.5))
    assert [(step, round(value, 9)) for step, value in accuracies(record, "all")] == [(0, 30), (8, 35), (16, 55)]
    assert [value for _, value in accuracies(record, "systematic")] == pytest.approx([20, 40, 50])
    assert worst(record, "diffuse") == pytest.approx(30)  # after the start, which is 40
    assert worst(record, "systematic") == pytest.approx(40)  # the start, 20, does not count


def test_the_share_of_the_gain_by_hand() -> None:
    full = run((0.2, 0.2), (0.8, 0.6))
    half = run((0.2, 0.1), (0.5, 0.1))
    assert recovered(half, full, "diffuse") == pytest.approx(50)  # 30 of 60 points
    assert recovered(half, full, "systematic") == pytest.approx(0)  # from its own start
    assert recovered(half, full, "all") == pytest.approx(30)  # 15 of 50
    assert recovered(full, full, "all") == pytest.approx(100)
    assert recovered(run((0.2, 0.2), (0.1, 0.1)), full, "all") == pytest.approx(-20)
    assert recovered(half, run((0.2, 0.2), (0.2, 0.2)), "all") is None


def test_gains_and_differences_are_taken_seed_by_seed() -> None:
    # Gains of 40 and 50 of 50 and 50 points; then 30 of 60: 80, 100 and 50 %.
    full = {0: run((0.2, 0.2), (0.7, 0.7)), 1: run((0.3, 0.3), (0.8, 0.8)), 2: run((0.1, 0.1), (0.7, 0.7))}
    arm = {0: run((0.2, 0.2), (0.6, 0.6)), 1: run((0.3, 0.3), (0.8, 0.8)), 2: run((0.1, 0.1), (0.4, 0.4))}
    result = recovered_over_seeds(arm, full, "all")
    assert result is not None
    assert result.by_seed == pytest.approx({0: 80, 1: 100, 2: 50})
    # Mean 230 / 3, standard deviation sqrt((3.33^2 + 23.33^2 + 26.67^2) / 2) = 25.17, t of two degrees 4.3027.
    assert result.half == pytest.approx(4.3027 * 25.166 / 3**0.5, rel=1e-4)
    assert recovered_over_seeds({7: arm[0]}, full, "all") is None


def test_a_paired_interval_by_hand() -> None:
    arm, baseline = runs(0.61, 0.62, 0.63, 0.64, 0.65), runs(0.60, 0.60, 0.60, 0.60, 0.60)
    ahead = paired(arm, baseline, lambda record: accuracies(record, "all")[-1][1])
    assert ahead is not None
    assert ahead.mean == pytest.approx(3)  # of 1, 2, 3, 4 and 5
    assert ahead.half == pytest.approx(T4 * 2.5**0.5 / 5**0.5, rel=1e-4)
    assert paired({9: arm[0]}, baseline, lambda record: 0.0) is None


def test_a_collapse_is_a_fall_below_the_start_while_the_reward_rises() -> None:
    rising = [(8, 40.0), (16, 50.0), (24, 60.0)]
    assert collapse([(0, 30.0), (8, 20.0), (16, 20.0), (24, 10.0)], rising) == 16  # at 8 the reward has not risen yet
    assert collapse([(0, 30.0), (8, 31.0), (16, 28.0), (24, 27.9)], rising) == 24  # 2 points are not more than 2
    assert collapse([(0, 30.0), (16, 20.0), (24, 40.0)], rising) == 16  # though it recovers
    assert collapse([(0, 30.0), (16, 29.0), (24, 35.0)], rising) is None
    falling = [(8, 40.0), (16, 40.0), (24, 30.0)]
    assert collapse([(0, 30.0), (16, 10.0), (24, 0.0)], falling) is None  # accuracy falls, and so does the reward


def test_collapse_by_kind_of_families_and_in_training() -> None:
    record = run((0.5, 0.3), (0.7, 0.2), (0.8, 0.1), reward=[0.5, 0.8])
    assert collapse_of(record, "all") is None  # 40, 45, 45
    assert collapse_of(record, "systematic") == 16
    assert collapse_of(record, "audited") is None  # nothing was audited
    assert collapse_of(record | {"audited": [0.4, 0.37]}, "audited") == 16
    assert collapse_of(record | {"audited": [0.4, 0.39]}, "audited") is None
    dip = run((0.5, 0.3), (0.7, 0.3), (0.4, 0.3), (0.6, 0.3), reward=[0.5, 0.6, 0.7])
    assert collapse_of(dip, "diffuse") == 16
    assert collapse_of(dip, "diffuse", at_the_end=True) is None
    assert collapsed({0: record, 1: dip}, "systematic", at_the_end=True) == {0: 16}
    assert collapsed({0: record, 1: run((0.5, 0.3), (0.5, 0.3), reward=[0.5])}, "systematic") == {0: 16}


def test_a_course_leaves_out_rounds_without_the_number() -> None:
    assert course(run((0, 0), (0, 0), (0, 0), reward=[None, 0.5]), "reward") == [(16, 50.0)]
    assert course(run((0, 0), (0, 0)), "reward") == []


def test_calibration_by_hand() -> None:
    table = {"n": [0, 4, 2], "sum": [0.0, 1.0, 1.8], "right": [0, 2, 1]}
    both = added([table, {"n": [1, 0, 0], "sum": [0.1, 0.0, 0.0], "right": [0, 0, 0]}])
    assert both == {"n": [1, 4, 2], "sum": [0.1, 1.0, 1.8], "right": [0, 2, 1]}
    # |0.1 - 0| + |1 - 2| + |1.8 - 1| = 1.9 of 7 problems
    assert calibration_error(both) == pytest.approx(100 * 1.9 / 7)
    assert calibration_error({"n": [0], "sum": [0.0], "right": [0]}) is None


def records() -> list[dict[str, Any]]:
    score = {family: {"n": 4, "total": 2.0, "squares": 2.0} for family in FAMILIES["all"]}
    table = {"n": [1, 2], "sum": [0.1, 1.8], "right": [0, 2]}

    def numbers(reward: float, **more: Any) -> dict[str, Any]:
        seconds = {"seconds_sample": 3.0, "seconds_grade": 1.0, "seconds_train": 4.0}
        return {"reward": reward, "tokens_sampled": 10, "tokens_trained": 5, **seconds, **more}

    return [
        {"round": 0, "clients": {"a": {"bytes_up": 1}, "b": {"bytes_up": 1}}, "evaluate": {"a": score}},
        {"round": 1, "clients": {"a": numbers(0.2, labels_asked=3), "b": numbers(0.4, share_query=None)}},
        {
            "round": 2,
            "clients": {
                "a": numbers(0.4, labels_asked=4, seconds_probes=2.0, calibration=table, **{"pass@1": 0.5}),
                "b": numbers(0.8, labels_asked=5, seconds_probes=1.0, calibration=table, share_query=0.25),
            },
            "evaluate": {"a": score},
        },
    ]


def test_the_summary_of_a_run_by_hand() -> None:
    result = summary(records(), "care-20", local_steps=2)
    assert set(result["pass@1"]) == {"0", "4"}
    assert accuracies(result, "all") == [(0, 50.0), (4, 50.0)]
    assert result["steps"] == [2, 4]
    assert result["reward"] == pytest.approx([0.3, 0.6])
    assert result["share_query"] == [None, 0.25]
    assert "share_known" not in result
    assert (result["labels"], result["drawn"]) == (12, 2 * 2 * 2 * BATCH)
    assert (result["tokens_sampled"], result["tokens_trained"]) == (40, 20)
    assert result["seconds_step"] == pytest.approx((4 * 8 + 3) / 8)
    assert probes_share(result) == pytest.approx(100 * 3 / 35)
    assert result["calibration"] == {"n": [2, 4], "sum": [0.2, 3.6], "right": [0, 4]}
    assert "audit_calibration" not in result
    # The majority's true accuracy in training is a series of its own, apart from what was held out.
    assert result["audited"] == [None, 0.5]


def test_all_labels_are_paid_for_where_none_is_asked_for() -> None:
    plain = [{**r, "clients": {c: {"reward": 0.1} for c in ("a", "b")}} for r in records()]
    assert summary(plain, "labels", local_steps=2)["labels"] == 2 * 2 * 2 * BATCH
    assert summary(plain, "majority", local_steps=2)["labels"] == 0
    assert probes_share(summary(plain, "majority", local_steps=2)) is None


def test_the_table_of_scores_by_hand() -> None:
    arms = {
        "labels": runs(0.8, 0.8),
        "majority": runs(0.3, 0.3),
        "random-20": runs(0.5, 0.5),
        "care-20": runs(0.6, 0.8),
    }
    lines = score_table("central", "all", arms)
    assert lines[0] == "### central: pass@1, all families"
    assert lines[4] == "| all labels | 20.0 ± 0.0 | 80.0 ± 0.0 | 80.0 ± 0.0 |  | +50.0 ± 0.0 |  |  |"
    # 60 and 80: mean 70, deviation 14.14, t of one degree 12.706, half of the interval 127.1; of a gain of 60.
    assert lines[7] == (
        "| CARE, 20 % | 20.0 ± 0.0 | 70.0 ± 127.1 | 70.0 ± 127.1 | -10.0 ± 127.1 | +40.0 ± 127.1 | +20.0 ± 127.1 "
        "| 83.3 ± 211.8 |"
    )
    assert "systematic families: difference, remainder, unit, score" in score_table("four", "systematic", arms)[0]
    assert len(score_table("four", "all", {"care-20": runs(0.6)})) == 5


def test_names_and_rivals() -> None:
    assert [name(arm) for arm in ("labels", "majority", "care-5", "random-pseudo-20", "care-untrusted-20")] == [
        "all labels",
        "majority alone",
        "CARE, 5 %",
        "random, rest as voted, 20 %",
        "CARE, none trusted, 20 %",
    ]
    assert len({name(arm) for arm in ARMS}) == len(ARMS)
    assert not any("-" in name(arm) for arm in ARMS)
    assert rival("care-5") == "random-5"
    assert rival("random-pseudo-20") == "random-20"
    assert [rival(arm) for arm in ("random-20", "labels", "majority")] == [None] * 3


def test_the_table_of_collapse_by_hand() -> None:
    fallen = run((0.5, 0.3), (0.7, 0.2), (0.8, 0.1), reward=[0.5, 0.8], audited=[0.4, 0.3])
    kept = run((0.5, 0.3), (0.7, 0.4), (0.8, 0.5), reward=[0.4, 0.8], audited=[0.4, 0.6])
    arms = {"majority": {0: fallen, 1: kept}, "care-20": {0: kept}, "random-20": {0: kept}, "labels": {0: kept}}
    lines = collapse_table("central", arms)[4:]
    assert lines[0].startswith("| majority alone | all | 0 of 2 | never | 0 | +")
    assert lines[2].startswith("| majority alone | systematic | 1 of 2 | 16 | 1 | +0.0 ± 254.1 |")  # -20 and +20
    assert lines[3].startswith("| majority alone | all, in training | 1 of 2 | 16 | 1 | +5.0 ± 190.6 | +35.0 ± 63.5 |")
    assert [line.split(" | ")[0] for line in lines[4:]] == ["| CARE, 20 %"] * 4 + ["| random, 20 %", "| all labels"]


def test_the_table_of_the_probes_by_hand() -> None:
    record = run(
        (0.2, 0.2),
        (0.2, 0.2),
        (0.2, 0.2),
        audit_majority_right=[0.5, 0.7],
        audit_gap_correlation=[None, 0.25],
        calibration={"n": [2], "sum": [1.0], "right": [2]},
        share_query=[0.2, 0.2],
    )
    lines = judge_table("central", {"care-20": {0: record}, "labels": {0: run((0.2, 0.2), (0.2, 0.2))}})
    assert lines[4:] == ["| CARE, 20 % | 60.0 |  |  | +0.25 | 50.0 |  | 20.0 |  |  |  |"]


def test_the_table_of_costs_by_hand() -> None:
    record = run((0.2, 0.2), (0.2, 0.2), seconds_probes=0.01)
    lines = cost_table(
        "four",
        {"care-20": {0: record, 1: record}, "labels": {0: run((0, 0), (0, 0), labels=100)}},
        {
            "care-20": 100.0,
            "labels": 30.0,
        },
    )
    assert lines[4] == "| CARE, 20 % | 20 ± 0 | 20.0 | 5 | 2 | 200 | 10.0 | 5.0 ± 0.0 | 50 |"
    assert lines[5] == "| all labels | 100 | 100.0 | 5 | 2 | 200 |  |  | 30 |"


def test_goals_are_met_or_missed_by_their_numbers() -> None:
    arms = {"labels": runs(0.8, 0.8, 0.8), "random-20": runs(0.5, 0.5, 0.5), "majority": runs(0.1, 0.1, 0.3)}
    for record in arms["majority"].values():
        record |= {
            "reward": [0.5, 0.9],
            "pass@1": {"0": record["pass@1"]["0"], "8": record["pass@1"]["8"], "16": record["pass@1"]["8"]},
        }
        record |= {"steps": [8, 16]}
    good = goals("central", arms | {"care-20": runs(0.80, 0.79, 0.78, reward=[0.5])})
    assert good[0].endswith("98.3 ± 4.1 % of the gain of all labels; aim: at least 95 %: **met**.")
    assert good[1].endswith("+29.0 ± 2.5 points; aim: at least +2 with an interval that excludes 0: **met**.")
    assert good[2] == (
        "- On all families the majority alone collapses in 2 of 3 seeds, CARE, 20 % in 0 of 3; aim: none: **met**."
    )
    assert len(good) == 5
    poor = goals("central", arms | {"care-20": runs(0.40, 0.70, 0.50, reward=[0.5])})
    assert poor[0].endswith("aim: at least 95 %: **missed**.")
    assert poor[1].endswith("points; aim: at least +2 with an interval that excludes 0: **missed**.")  # 3.3 +- 38
    close = goals("central", arms | {"care-20": runs(0.51, 0.51, 0.51, reward=[0.5])})
    assert close[1].endswith("**missed**.")  # clearly ahead, but by 1 point
    worse = {seed: {**record, "reward": [0.1, 0.2]} for seed, record in arms["majority"].items()}
    assert "CARE, 20 % in 2 of 3; aim: none: **missed**." in goals("central", arms | {"care-20": worse})[2]


def test_nothing_is_shown_where_the_majority_does_not_collapse() -> None:
    fine = runs(0.5, 0.5, reward=[0.5])
    lines = goals("four", {"majority": fine, "care-20": fine})
    assert "collapses in none of 2 seeds, so that nothing is shown" in lines[0]
    assert not any("met" in line.split("**") or "missed" in line.split("**") for line in lines)


def test_the_probes_share_and_averaging_are_told_of() -> None:
    cheap, dear = runs(0.5, 0.5, seconds_probes=0.02), runs(0.5, 0.5, seconds_probes=0.021)
    assert goals("four", {"care-20": cheap})[0].endswith(
        "take 10.0 ± 0.0 % of a step's time; aim: at most 10 %: **met**."
    )
    assert goals("four", {"care-20": dear})[0].endswith("**missed**.")
    both = goals("four", {"care-20": runs(0.5, 0.5), "care-shared-20": runs(0.6, 0.7)})
    assert both == ["- Averaged probes minus local ones: +15.0 ± 63.5 points."]
    assert goals("four", {"labels": cheap}) == ["CARE, 20 % is not finished yet."]


def test_numbers_are_shown_with_half_of_their_interval() -> None:
    assert shown(Spread(1.26, 0.34, {}), sign=True) == "+1.3 ± 0.3"
    assert shown(Spread(1.26, None, {}), digits=2) == "1.26"
    assert shown(None) == ""
    assert over_seeds(runs(0.5), lambda record: math.nan) is None


@pytest.mark.parametrize("present", [["care-20"], ["labels"], ["labels", "majority", "care-5", "care-20", "oracle-20"]])
def test_figures_are_drawn_of_whatever_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, present: list[str]
) -> None:
    monkeypatch.setattr(care_figures, "FIGURES", tmp_path)
    table = {"n": [1, 4], "sum": [0.1, 3.6], "right": [0, 4]}
    more = {"reward": [0.5], "audited": [0.4], "calibration": table, "audit_calibration": table}
    care_figures.draw({"central": {arm: runs(0.5, 0.6, **more) for arm in present}})
    drawn = {path.stem.removeprefix("care_") for path in tmp_path.iterdir()}
    wanted = {"accuracy", "collapse" if "care-20" in present else "", "calibration" if "care-20" in present else ""}
    assert drawn == (wanted | ({"budget"} if "labels" in present else set())) - {""}


def test_unfinished_cells_are_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(care_tables, "directory_of", lambda setting, arm: tmp_path / setting / arm)
    with pytest.raises(SystemExit, match="no cell is finished"):
        care_tables.write(2)
