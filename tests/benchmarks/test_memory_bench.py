"""The server's memory, seen in small: how many adapters and replies live at once, whatever the number of clients."""

from __future__ import annotations

import gc
import time
from typing import Any

import numpy as np
import pytest
from flwr.app import Array

from benchmarks import memory
from benchmarks.measure import MEBI
from benchmarks.memory import HOLDING, RANK, SEVEN_B, STREAMED, Alive, Case, Replies, measure, report, strategy_for

SHAPES = {"up": (6, 4), "down": (4, 6)}
SMALL: dict[str, Any] = {"ranks": (2,)}


def slow(*values: Any) -> Any:
    """Values of a case that takes two seconds and is like another one."""
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("rule", "options"),
    [
        ("fedit", SMALL),
        slow("ffa", SMALL),
        slow("rolora", SMALL),
        slow("hetlora", SMALL),
        slow("hetlora", {"ranks": (1, 2, 3)}),
        slow("fedit", {**SMALL, "precision": "int8"}),
        slow("ffa", {**SMALL, "precision": "float16"}),
    ],
)
def test_no_more_adapters_live_with_32_clients_than_with_4(rule: str, options: dict[str, Any]) -> None:
    few, many = (measure(Case(rule, clients, **options), SHAPES) for clients in (4, 32))
    assert few["adapters"] == many["adapters"]
    assert 1 <= many["adapters"] <= 2
    assert few["left"] == many["left"] == 0


@pytest.mark.parametrize("rule", ["fedit", "hetlora", "flora"])
def test_a_reply_is_gone_when_the_next_but_one_comes(rule: str) -> None:
    gc.disable()
    try:
        result = measure(Case(rule, 8, **SMALL), SHAPES)
    finally:
        gc.enable()
    assert result["replies"] == 2  # the last one, and the one that has just been made


@pytest.mark.parametrize(
    ("rule", "options"),
    [
        *(slow(rule, SMALL) for rule in ("flora", "fedex", "flexlora")),
        slow("fedit", {**SMALL, "robust": "median"}),
        ("fedit", {**SMALL, "step": "auto"}),
    ],
)
def test_rules_that_look_at_all_adapters_together_hold_them_all(rule: str, options: dict[str, Any]) -> None:
    for clients in (4, 8):
        result = measure(Case(rule, clients, **options), SHAPES)
        assert result["adapters"] == clients
        assert result["left"] == 0


def test_without_a_server_nothing_is_held_but_the_reply_at_hand() -> None:
    result = measure(Case(memory.NONE, 8, **SMALL), SHAPES)
    assert (result["adapters"], result["replies"], result["left"]) == (0, 1, 0)


def test_the_adapters_are_those_of_a_model_of_7_billion_parameters() -> None:
    # 16 x (4 x (4096 + 4096) + 3 x (11008 + 4096)) x 32
    assert sum(RANK * (d + k) for d, k in SEVEN_B.values()) == 39_976_960
    assert len(SEVEN_B) == 224
    assert SEVEN_B["31.down"] == (4096, 11008)
    replies = Replies(case := Case("fedit", 1), strategy_for(case, {"0.q": SEVEN_B["0.q"]}))
    sent = next(iter(replies)).content.array_records["arrays"]
    assert [array.shape for array in sent.values()] == [(16 * 4096,), (16 * 4096,)]


def test_an_array_begun_elsewhere_holds_the_same_numbers_in_its_own_bytes() -> None:
    whole = Array(np.arange(5, dtype=np.float32))
    begun = memory._begun_at(whole, 0.4)
    np.testing.assert_array_equal(begun.numpy(), [2, 3, 4, 0, 1])
    np.testing.assert_array_equal(memory._begun_at(whole, 0.0).numpy(), whole.numpy())
    assert memory._begun_at(whole, 0.0).data is not whole.data


def test_clients_send_different_numbers_and_the_mean_is_theirs() -> None:
    case = Case("fedit", 3, ranks=(2,))
    sent = [reply.content.array_records["arrays"] for reply in Replies(case, strategy_for(case, SHAPES))]
    numbers = [np.concatenate([array.numpy() for array in arrays.values()]) for arrays in sent]
    assert len({values.tobytes() for values in numbers}) == 3
    strategy = strategy_for(case, SHAPES)
    strategy.aggregate_train(1, Replies(case, strategy))
    layers = strategy.adapter.layers.values()
    mean = np.concatenate([factors[half].numpy().ravel() for half in (0, 1) for factors in layers])
    expected = sum(weight * values for weight, values in zip((1, 2, 3), numbers, strict=True)) / 6  # examples: 1, 2, 3
    np.testing.assert_allclose(mean, expected, atol=1e-7)


def test_mixed_ranks_are_dealt_out_in_turn() -> None:
    case = Case("hetlora", 4, ranks=(1, 3))
    replies = Replies(case, strategy_for(case, SHAPES))
    sizes = [next(iter(reply.content.array_records["arrays"].values())).shape for reply in replies]
    assert sizes == [(10,), (30,), (10,), (30,)]  # A: rank x (4 + 6)


def test_seconds_of_making_replies_are_not_the_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    begun_at = memory._begun_at

    def slow(array: Array, place: float) -> Array:
        until = time.process_time() + 0.05
        while time.process_time() < until:
            pass
        return begun_at(array, place)

    monkeypatch.setattr(memory, "_begun_at", slow)
    result = measure(Case("fedit", 4, **SMALL), SHAPES)
    assert result["cpu_making"] >= 0.4  # four replies of two arrays
    assert result["cpu"] + result["cpu_end"] < 0.2


def test_a_thing_lives_as_long_as_any_of_its_parts() -> None:
    class Part:
        pass

    alive = Alive()
    first, second, third = Part(), Part(), Part()
    alive.note([first, second])
    alive.note([third])
    del first
    assert (alive.count(), alive.most) == (2, 2)
    del second
    assert (alive.count(), alive.most) == (1, 2)
    del third
    alive.note([alive])
    assert (alive.count(), alive.most) == (1, 2)


def test_the_table_shows_peaks_and_what_a_further_client_adds() -> None:
    nbytes = 39_976_960 * 4

    def cost(adapters: float, most: int) -> dict[str, Any]:
        peak = 7 * MEBI + round(adapters * nbytes)
        return {"before": 7 * MEBI, "peak": peak, "adapters": most, "replies": 2, "cpu": 16.0, "cpu_end": 0.25}

    result = [
        (Case("fedit", 8), cost(4, 3)),
        (Case("fedit", 64), cost(4, 3)),
        (Case("flora", 2), cost(6, 2)),
        (Case("flora", 8), cost(18, 8)),
    ]
    lines = report(result, "about").splitlines()
    # 4, 6 and 18 times 152.5 MiB
    assert "| fedit | 610 | 610 | +0.000 | 3 / 3 | 2 / 2 | 0.25 | 0.25 |" in lines
    assert "| flora | 915 | 2,745 | +2.000 | 2 / 8 | 2 / 2 | 2.00 | 0.25 |" in lines
    assert lines.index("### Rules that hold them all, for contrast") < next(
        at for at, line in enumerate(lines) if line.startswith("| flora")
    )


def test_a_case_goes_to_its_process_and_back(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: list[Case] = []

    def measured(case: Case) -> dict[str, Any]:
        given.append(case)
        return {"peak": 1}

    monkeypatch.setattr(memory, "measure", measured)
    case = Case("hetlora", 8, ranks=(4, 8))

    def run(command: list[str], **_: object) -> Any:
        memory.main(command[3:])
        return type("Done", (), {"stdout": capsys.readouterr().out})

    monkeypatch.setattr(memory.subprocess, "run", run)
    assert memory.apart(case) == {"peak": 1}
    assert given == [case]


def test_every_case_is_one_that_a_federation_can_have_and_labelled_apart() -> None:
    cases = [*STREAMED, *HOLDING]
    assert len({(case.label, case.clients) for case in cases}) == len(cases)
    for case in cases:
        strategy_for(case, SHAPES)
    assert {(case.rule, case.clients) for case in cases} >= {("fedit", 256), ("hetlora", 256)}
