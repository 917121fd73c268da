"""Weight-based dose, drip rate, unit conversion, score with a threshold. Made-up numbers, not clinical advice.

| family | easy                              | hard                                  | error                          |
|--------|-----------------------------------|---------------------------------------|--------------------------------|
| dose   | 2-9 mg/kg a dose                  | 11-19 mg/kg a dose                    | diffuse                        |
| drip   | 2-9 ml a minute                   | 11-19 ml a minute                     | diffuse                        |
| unit   | grams + milligrams                | several tablets of each               | systematic: mg for g           |
| score  | three items, 2-9 points to pay    | five items, 11-19 points to pay       | systematic: threshold left out |
"""

from __future__ import annotations

from random import Random

from fedrlvr.zoo.family import Family, Level, Operands, Pen, times_by_columns

DROPS_PER_ML = (10, 12, 15, 20)  # the drop factors infusion sets are sold with


def _draw_dose(rng: Random, level: Level) -> Operands:
    weight = rng.randrange(10, 100)
    if level == "easy":
        each, doses = rng.randrange(2, 10), rng.randrange(2, 5)
    else:
        each, doses = rng.randrange(11, 20), rng.randrange(2, 6)
    return weight, each * doses, doses


def _work_dose(operands: Operands, pen: Pen) -> int:
    """34 kg, 12 mg/kg/day in 3 doses: 4 mg/kg a dose, then the columns of 34x4: "4 16 13", read off as 136."""
    weight, daily, doses = operands
    each = pen.write(daily // doses)
    return times_by_columns(weight, each, pen)


DOSE = Family(
    name="dose",
    domain="clinical",
    error="diffuse",
    draw=_draw_dose,
    ask=lambda operands: f"{operands[0]} kg, {operands[1]} mg/kg/day in {operands[2]} doses?",
    answer=lambda operands: operands[0] * operands[1] // operands[2],
    work=_work_dose,
)


def _draw_drip(rng: Random, level: Level) -> Operands:
    minutes = rng.randrange(10, 100)
    flow = rng.randrange(2, 10) if level == "easy" else rng.randrange(11, 20)
    return minutes * flow, minutes, rng.choice(DROPS_PER_ML)


def _work_drip(operands: Operands, pen: Pen) -> int:
    """240 ml in 40 min, 15 gtt/ml: "6*15" (ml a minute x drops a ml), 90 drops a minute.

    From 10 ml a minute on, what ten leave over comes first: 552 ml in 46 min: "92 2 12*15" (552 - 460 = 2 x 46).
    """
    volume, minutes, drops = operands
    if volume < 10 * minutes:
        flow = pen.write(volume // minutes)
    else:
        rest = pen.write(volume - 10 * minutes)
        more = pen.write(rest // minutes)
        flow = pen.write(10 + more)
    return flow * pen.write(drops, before="*")


DRIP = Family(
    name="drip",
    domain="clinical",
    error="diffuse",
    draw=_draw_drip,
    ask=lambda operands: f"{operands[0]} ml in {operands[1]} min, {operands[2]} gtt/ml?",
    answer=lambda operands: operands[0] // operands[1] * operands[2],
    work=_work_drip,
)


def _draw_unit(rng: Random, level: Level) -> Operands:
    """Easy: grams and milligrams add up without a carry, or the misconception would err in many ways and not in one."""
    if level == "easy":
        grams = rng.randrange(2, 10)
        return grams, 10 * rng.randrange(10, 100) + rng.randrange(10 - grams)
    return rng.randrange(2, 10), rng.randrange(2, 10), rng.randrange(2, 10), rng.randrange(10, 100)


def _ask_unit(operands: Operands) -> str:
    if len(operands) == 2:
        return f"{operands[0]} g + {operands[1]} mg in mg?"
    return f"{operands[0]} x {operands[1]} g + {operands[2]} x {operands[3]} mg in mg?"


def _answer_unit(operands: Operands) -> int:
    if len(operands) == 2:
        return 1000 * operands[0] + operands[1]
    return 1000 * operands[0] * operands[1] + operands[2] * operands[3]


def _work_unit(operands: Operands, pen: Pen) -> int:
    """2 g + 350 mg: "2000+350", or with grams taken for milligrams "2+350".

    4 x 2 g + 3 x 85 mg: the grams, then the columns of 85x3: "8000 15 25", or "8 15 25".
    """
    factor = 1 if pen.misconceived else 1000
    if len(operands) == 2:
        return pen.write(operands[0] * factor) + pen.write(operands[1], before="+")
    heavy, grams, light, milligrams = operands
    return pen.write(heavy * grams * factor) + times_by_columns(milligrams, light, pen)


UNIT = Family(
    name="unit",
    domain="clinical",
    error="systematic",
    draw=_draw_unit,
    ask=_ask_unit,
    answer=_answer_unit,
    work=_work_unit,
)


def _draw_score(rng: Random, level: Level) -> Operands:
    """Operands are the threshold, the milligrams a point, then the items."""
    count, fewest, most = (3, 2, 9) if level == "easy" else (5, 11, 19)
    while True:
        items = [rng.randrange(1, 10) for _ in range(count)]
        threshold = sum(items) + 1 - rng.randint(fewest, most)
        if threshold >= 2:
            return threshold, rng.randrange(2, 10), *items


def _ask_score(operands: Operands) -> str:
    threshold, rate, *items = operands
    return f"Score {'+'.join(map(str, items))}, {rate} mg a point from {threshold}?"


def _work_score(operands: Operands, pen: Pen) -> int:
    """Score 3+2+4, 5 mg a point from 7: "5 9-6=3", so 15 mg; the misconception leaves point 7 out: "5 9-7=2"."""
    threshold, rate, *items = operands
    total = items[0]
    for item in items[1:]:
        total = pen.write(total + item)
    below = pen.write(threshold if pen.misconceived else threshold - 1, before="-")
    return rate * pen.write(total - below, before="=")


SCORE = Family(
    name="score",
    domain="clinical",
    error="systematic",
    draw=_draw_score,
    ask=_ask_score,
    answer=lambda operands: (sum(operands[2:]) - operands[0] + 1) * operands[1],
    work=_work_score,
)
