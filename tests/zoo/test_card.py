"""The card says what was measured, and which targets were missed."""

from __future__ import annotations

import json

from scripts.reasoner.card import Score, read_scores, table, write_card

GOOD = Score("sum", "easy", "diffuse", 200, 1.0, 0.531, 0.945, 0.985)
CONFIDENTLY_WRONG = Score("unit", "easy", "systematic", 200, 0.0, 0.3, 0.1, 0.9)
RARELY_RIGHT = Score("score", "hard", "systematic", 200, 0.0, 0.1, 0.0, 0.5)
TRAINING = {
    "clean_greedy": {"sum easy": 1.0, "dose hard": 0.955},
    "noise": {"sum easy": 0.4, "dose hard": 0.85},
    "shown": ["sum", "dose", "dose"],
    "seed": 3,
    "clean_steps": 12,
    "noisy_steps": 5,
    "batch": 7,
    "check_size": 20,
    "seconds": 9,
    "parameters": 865920,
    "date": "2026-01-02",
    "machine": "a machine",
    "torch": "2",
    "transformers": "5",
}


def test_targets_by_level_and_error():
    assert GOOD.on_target
    assert CONFIDENTLY_WRONG.on_target
    assert RARELY_RIGHT.on_target
    # Right too often, a majority that fails where it should hold, and one that holds where it should fail.
    assert not Score("sum", "hard", "diffuse", 200, 1.0, 0.16, 0.5, 0.9).on_target
    assert not Score("sum", "easy", "diffuse", 200, 1.0, 0.531, 0.895, 0.9).on_target
    assert not Score("unit", "easy", "systematic", 200, 0.0, 0.3, 0.75, 0.9).on_target
    assert not Score("score", "hard", "systematic", 200, 0.0, 0.02, 0.0, 0.1).on_target


def test_a_table_reads_back():
    scores = [GOOD, CONFIDENTLY_WRONG, RARELY_RIGHT]
    assert table([GOOD]).splitlines()[-1] == "| sum | easy | diffuse | 200 | 100.0 | 53.1 | 94.5 | 98.5 |"
    assert table(read_scores(f"before\n\n{table(scores)}\n\nafter\n")) == table(scores)


def test_the_card_is_written_from_the_training_record_and_the_scores(tmp_path):
    (tmp_path / "training.json").write_text(json.dumps(TRAINING))
    write_card(tmp_path, [GOOD, RARELY_RIGHT], seed=4)
    card = (tmp_path / "CARD.md").read_text()
    assert table(read_scores(card)) == table([GOOD, RARELY_RIGHT])
    assert "--seed 3 --clean-steps 12 --noisy-steps 5 --batch 7`" in card
    assert "2026-01-02, a machine, 9 s" in card
    assert "All are inside." in card
    assert "| sum | easy | 40 | 100.0 |\n| dose | hard | 85 | 95.5 |" in card
    assert "by turns: sum, dose, dose." in card


def test_the_card_names_the_cells_outside_their_targets(tmp_path):
    (tmp_path / "training.json").write_text(json.dumps(TRAINING))
    write_card(tmp_path, [GOOD, Score("unit", "easy", "systematic", 200, 0.0, 0.3, 0.75, 0.9)], seed=0)
    assert "Outside: unit easy." in (tmp_path / "CARD.md").read_text()
