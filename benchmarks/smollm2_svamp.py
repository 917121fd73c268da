"""A real language model on word problems: SmolLM2-135M on SVAMP, before and after supervised training, and after RL.

    fedrlvr model fetch smollm2 models/smollm2            once
    scripts/bench smollm2_svamp --data DIR                DIR holds SVAMP.json
    scripts/bench smollm2_svamp --collect                 the table from what has been run

examples/smollm2_svamp.toml, one seed: 806 problems among three clients, 100 supervised steps of 4 problems at each
(4 rounds of 25, learning rate 1e-3), then 24 steps of 4 problems x 8 responses (8 rounds of 3, 2.5e-4). No setting was
chosen by a result. All 194 test problems are asked, sampled at temperature 1 and greedily, of the base model with the
prompt of the training, the base model with three worked examples in the prompt, the base model in a chat with the
default instruction and room for 128 tokens, the adapter after supervised training, and the adapter after RL. The
run of RL showed no gain, and was then continued by 36 further steps, to see whether that was too few. One seed shows
that the way works, and not how much it varies.

Resumable: a stage that is finished in runs/smollm2_svamp is not repeated. Writes docs/results/svamp.json and .md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.cells import timed
from benchmarks.gain_sites_tables import shown
from benchmarks.tables import table
from fedrlvr.config import Config, load_config
from fedrlvr.machine import description
from fedrlvr.reporting.scores import estimate
from fedrlvr.reporting.spread import paired
from fedrlvr.simulation.evaluate import evaluate
from fedrlvr.simulation.run import resume, run
from fedrlvr.version import __version__

ROOT = Path(__file__).parents[1]
BASE = ROOT / "examples" / "smollm2_svamp.toml"
RUNS = ROOT / "runs" / "smollm2_svamp"
RESULTS = ROOT / "docs" / "results"
SETTINGS = [
    "sft.rounds=4",
    "sft.local_steps=25",
    "sft.learning_rate=1e-3",
    "train.rounds=8",
    "train.local_steps=3",
    "evaluate.every=4",
]
EXAMPLES = "".join(
    f"Problem: {problem}\nEquation: {equation}\n"
    for problem, equation in (
        ("Kim has 3 red and 4 green apples. How many apples does Kim have?", r"3 + 4 = \boxed{7}"),
        ("Lee had 9 pens and lost 2. How many pens are left?", r"9 - 2 = \boxed{7}"),
        ("Each of 5 boxes holds 6 cups. How many cups are there?", r"5 * 6 = \boxed{30}"),
    )
)
"""Worked examples for the base model, ours, which are in no data set."""
STAGES = {
    "base": "base model, prompt of the training",
    "examples": "base model, three worked examples in the prompt",
    "chat": "base model, chat with the default instruction, 128 tokens",
    "sft": "after supervised training",
    "rl": "after RL",
    "longer": "after 36 further steps of RL",
}
LONGER = 20
"""Rounds of RL in all of the stage that goes on."""
TEMPERATURES = {"sampled": 1.0, "greedy": 0.0}


def settings(data: Path | None, name: str, *more: str) -> Config:
    """The configuration of a stage, with its directory.

    data: the directory of SVAMP.json; None where only the settings are of interest.
    """
    given = [*SETTINGS, f"run.directory={json.dumps(str(RUNS / name))}", *more]
    return load_config(BASE, given if data is None else [*given, f"data.path={json.dumps(str(data))}"])


def train(data: Path) -> None:
    """Supervised training, and RL from its adapter; each goes on where it was stopped."""
    first = settings(data, "run").for_sft()
    _finish(first)
    _finish(settings(data, "run", f"model.adapter={json.dumps(str(first.run.directory))}"))


def train_longer() -> None:
    """Go on with a copy of the run of RL, up to 20 rounds."""
    longer = RUNS / "longer"
    if not longer.exists():
        shutil.copytree(RUNS / "run", longer)
        (longer / "report.html").unlink()
    if not (longer / "report.html").exists():
        with timed_in(longer.name):
            resume(longer, [f"train.rounds={LONGER}"])


def _finish(config: Config) -> None:
    directory = config.run.directory
    if directory is None or (directory / "report.html").exists():
        return
    with timed_in(directory.name):
        resume(directory) if (directory / "config.json").exists() else run(config)


def timed_in(name: str) -> Any:
    """Adds what is done to the seconds of a stage."""
    place = RUNS / "seconds" / name
    place.mkdir(parents=True, exist_ok=True)
    return timed(place)


def ask(data: Path, stage: str, how: str) -> None:
    """Keep the pass rate of every test problem at a stage, in the order of the clients' problems."""
    kept = RUNS / f"{stage}-{how}.json"
    if kept.exists():
        return
    more = [f"evaluate.temperature={TEMPERATURES[how]}"]
    if stage == "examples":
        template = EXAMPLES + "Problem: {{ prompt }}\nEquation:"
        more += [f"prompt.template={json.dumps(template)}"]
    elif stage == "chat":
        more += [
            "prompt.chat=on",
            r'prompt.template="{{ prompt }}\n\n{{ instruction }}"',
            "prompt.stop=[]",
            "sampling.max_new_tokens=128",
        ]
    adapter = {"sft": RUNS / "run-sft", "rl": RUNS / "run", "longer": RUNS / "longer"}.get(stage)
    with timed_in(f"eval-{stage}-{how}"):
        rates = evaluate(settings(data, "evaluation", *more), adapter).rates
    kept.write_text(json.dumps([rate for client in sorted(rates) for rate in rates[client]]), "utf-8")


def score(rates: Sequence[float]) -> str:
    """Mean of the problems' pass rates with its interval, in %."""
    rate = estimate(len(rates), sum(rates), sum(value * value for value in rates))
    return f"{100 * rate.mean:.1f} [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"


def gain(after: Sequence[float], before: Sequence[float]) -> str:
    """Points gained, with the interval of the differences problem by problem."""
    return shown(paired(dict(enumerate(after)), dict(enumerate(before)), lambda rate: 100 * rate), sign=True)


def stages_table(rates: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """pass@1 of each stage, sampled and greedy, and the difference to the stage of the last line before it."""
    rows = []
    for stage, name in STAGES.items():
        if stage not in rates:
            continue
        cells = [score(rates[stage][how]) for how in TEMPERATURES]
        if before := {"sft": "base", "rl": "sft", "longer": "sft"}.get(stage):
            cells += [gain(rates[stage][how], rates[before][how]) for how in TEMPERATURES]
        rows.append([name, *cells, *[""] * (4 - len(cells))])
    return table(["", "sampled", "greedy", "gain, sampled", "gain, greedy"], rows)


def write() -> None:
    """Write docs/results/svamp.{json,md} from the stages that are finished both ways.

    Raises:
        SystemExit: none is.
    """
    rates: dict[str, dict[str, list[float]]] = {}
    for stage in STAGES:
        files = {how: RUNS / f"{stage}-{how}.json" for how in TEMPERATURES}
        if all(file.exists() for file in files.values()):
            rates[stage] = {how: json.loads(file.read_text("utf-8")) for how, file in files.items()}
    if not rates:
        raise SystemExit("nothing has been run here yet: scripts/bench smollm2_svamp --data DIR")
    seconds = {
        path.parent.name: json.loads(path.read_text("utf-8"))["cpu"] for path in sorted(RUNS.rglob("seconds.json"))
    }
    asked = fmean(len(of[how]) for of in rates.values() for how in TEMPERATURES)
    about = (
        f"`scripts/bench smollm2_svamp --data DIR`, seed {settings(None, 'run').run.seed}, "
        f"{datetime.date.today().isoformat()}, fedrlvr {__version__}, {description()}, one torch thread. "
        f"SmolLM2-135M-Instruct, pass@1 in % on all {asked:.0f} test problems of SVAMP, one response each; 95 % "
        "intervals over problems. Gains are paired by problem: of supervised training to the base model with the "
        "same prompt, of RL to supervised training."
    )
    costs = [[name, f"{cpu:.0f}"] for name, cpu in seconds.items()]
    text = "\n\n".join([about, stages_table(rates).rstrip(), table(["stage", "CPU seconds"], costs)])
    (RESULTS / "svamp.md").write_text(text, "utf-8")
    kept = {"about": about, "settings": SETTINGS, "rates": rates, "cpu_seconds": seconds}
    (RESULTS / "svamp.json").write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n", "utf-8")
    print(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="directory of SVAMP.json")
    parser.add_argument("--collect", action="store_true", help="only make the table")
    chosen = parser.parse_args()
    if not chosen.collect:
        if chosen.data is None:
            parser.error("--data DIR: the directory that holds SVAMP.json")
        data = chosen.data.resolve()
        for stage in ("base", "examples"):
            for how in TEMPERATURES:
                ask(data, stage, how)
        train(data)
        for stage in ("sft", "rl"):
            for how in TEMPERATURES:
                ask(data, stage, how)
        for how in TEMPERATURES:
            ask(data, "chat", how)
        train_longer()
        for how in TEMPERATURES:
            ask(data, "longer", how)
    write()


if __name__ == "__main__":
    main()
