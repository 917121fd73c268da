"""report.html: one page that shows what a run did, with nothing to load from elsewhere and no script.

The page is a Jinja template beside this file; the curves are SVG inside it. The same run directory and the same
installed versions give the same bytes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedrlvr.config import Asking, CareSupervision, Config, PubSwapCoordination, SelectionSupervision
from fedrlvr.errors import CheckpointError, printable
from fedrlvr.files import atomic_text, read_json
from fedrlvr.output import logger
from fedrlvr.reporting import units
from fedrlvr.reporting.advice import advise, round_means
from fedrlvr.reporting.curves import CURVES, FATE_TITLES, IMITATION_CURVES, LABEL_CURVES, STEP_CURVE
from fedrlvr.reporting.figures import (
    COLOURS,
    MOST_POINTS,
    Curve,
    draw_calibration,
    draw_curves,
    draw_evaluations,
    draw_shares,
)
from fedrlvr.reporting.observer import Event, Observer, RunEnded
from fedrlvr.reporting.page import page_template
from fedrlvr.reporting.provenance import read_about, versions
from fedrlvr.reporting.responses import LoggedResponse, excerpt
from fedrlvr.reporting.scores import (
    Comparison,
    Totals,
    also_measured,
    calibration,
    calibration_points,
    client_numbers,
    dropped_responses,
    evaluations,
    label_lines,
    mean_shares,
    natural,
    personal_scores,
    series,
    shares,
    summarise,
    totals,
)
from fedrlvr.reporting.story import History, tell
from fedrlvr.reporting.verdict import Verdict, read_verdict

_log = logger("reporting")

Holdings = Mapping[str, Mapping[tuple[str, str], int]]

MOST_RESPONSES_SHOWN = 8
"""Largest number of responses in a report."""
MOST_ROWS = 200
"""Largest number of rows of a table; a note says how many are left out, and metrics.jsonl has all."""
MOST_IN_MATRIX = 40
"""Largest number of clients whose adapters are shown on every client's problems."""
_MOST_SOURCES = 40  # columns of the table of problems
_MOST_TOLD = 20  # clients that a sentence names
_LONGEST_VALUE = 2000  # characters of a setting


class ReportWriter(Observer):
    """Writes the report when the run is complete.

    config: the run's, as it is written down.
    """

    essential = True

    def __init__(self, directory: Path, config: Config) -> None:
        self.directory, self.config = directory, config

    def notify(self, event: Event) -> None:
        """Write the report when the run ends.

        Raises:
            CheckpointError: as `write_report`.
        """
        if isinstance(event, RunEnded):
            write_report(self.directory, self.config, event.records)


def write_report(directory: Path, config: Config, records: Sequence[Mapping[str, Any]]) -> Path:
    """Write `<directory>/report.html` as a whole and return its path.

    records: the lines of metrics.jsonl. `<directory>/holdings.json` and `verdict.json` are used if they are there, and
    the responses below `<directory>/clients`, which only a simulation has.

    Raises:
        CheckpointError: the page cannot be written (an old one is intact), or one of these cannot be read.
    """
    path = directory / "report.html"
    holdings, gains = _read_holdings(directory / "holdings.json"), read_verdict(directory, config.train.rounds)
    page = render(config, records, holdings, gains, _read_responses(directory), read_about(directory))
    try:
        atomic_text(path, page)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error} The run's rounds, metrics and adapter are not affected: make room or mend the disk, then go on "
            "with --resume, which writes the report again."
        ) from error
    return path


def render(
    config: Config,
    records: Sequence[Mapping[str, Any]],
    holdings: Holdings | None = None,
    gains: Verdict | None = None,
    responses: Sequence[tuple[str, LoggedResponse]] = (),
    about: Mapping[str, Any] | None = None,
) -> str:
    """The report's page as HTML text.

    holdings: number of problems by "train" and "test", then by (client, source). gains: each client's verdict.
    responses: a few, each with its client. about: the run's provenance (about.json).
    """
    scores = summarise(records)
    sums, also, left_out = totals(records), also_measured(records), _left_out(records)
    times = Counter(client for _, client, _ in left_out)
    page = page_template("report.html.jinja").render(
        config=config,
        story=list(tell(History(records, config.train.rounds, gains)).values()),
        about=about or {},
        most=MOST_ROWS,
        most_in_matrix=MOST_IN_MATRIX,
        coarse=len(records) > MOST_POINTS,
        scores=scores,
        sums=sums,
        verdict=_verdict(scores.overall, len(scores.sources)) if scores else None,
        gains=gains,
        greedy=config.evaluate.temperature == 0,
        shared=scores is not None and len(scores.lines) > len(scores.sources),
        method=_method(config),
        held_out=_evaluation_figure(records),
        figures=_training_figures(
            records,
            IMITATION_CURVES if config.supervision.type == "demonstrations" else (*CURVES, *_reward_curves(config)),
        ),
        server_step=_server_step_figure(records),
        labels=_labels(records),
        clients=_clients_drawn(records),
        personal=personal_scores(records),
        also_loss=also[0],
        also_task=also[1],
        left_out=left_out,
        left_out_times=times.most_common(_MOST_TOLD),
        left_out_more=len(times) > _MOST_TOLD,
        dropped=dropped_responses(records),
        phases=_phases(sums),
        holdings=_holdings_matrix(holdings) if holdings else None,
        responses=responses,
        advice=advise([round_means(record) for record in records]),
        settings=_settings(config),
        versions=versions(),
        many=COLOURS,
    )
    return printable(page, keep="\n\t")


def _read_holdings(path: Path) -> Holdings | None:
    """Problems by part (train, test), client and source; None if that was not written, as where nobody but the
    organisations knows."""
    try:
        tree = read_json(path)
        if isinstance(tree, dict) and "public" in tree and not {"train", "test"} & set(tree):
            return None
        return {part: {(str(c), str(s)): int(n) for c, s, n in tree[part]} for part in ("train", "test")}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, OverflowError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({error}). Delete it to have a report without the problems by client."
        ) from None


def _read_responses(directory: Path) -> list[tuple[str, LoggedResponse]]:
    """A few responses of a simulation's clients; none where they cannot be read, which a warning says."""
    try:
        return excerpt(directory, MOST_RESPONSES_SHOWN)
    except CheckpointError as error:
        _log.warning("The report shows no responses: %s", error)
        return []


def _left_out(records: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """Round, client and reason of each that was left out, also of the personal adapters."""
    parts = [(str(record["round"]), record) for record in records]
    parts += [("personal", record["personal"]) for record in records[-1:] if "personal" in record]
    return [(place, *pair) for place, part in parts for pair in sorted(part.get("left_out", {}).items())]


def _method(config: Config) -> str:
    """The method in a few words, by its seams."""
    if config.federation.arm != "federated":
        alone = config.federation.arm == "local"
        return "each client alone, nothing travels" if alone else "all problems pooled with one client"
    supervision = config.supervision.type + (f" ({labels})" if (labels := _labels_bought(config)) else "")
    fedprox = f", FedProx μ = {config.train.proximal_mu:g}" if config.train.proximal_mu else ""
    coordination: str = config.coordination.type
    if isinstance(config.coordination, PubSwapCoordination):
        coordination += f" (swap {config.coordination.swap}, ratio {config.coordination.ratio})"
    how = config.aggregation
    options = [f"weights {how.weights}"] if how.weights != "examples" else []
    options += [f"robust {how.robust}"] if how.robust != "none" else []
    options += [f"sent in {how.number_format}"] if how.number_format != "float32" else []
    options += [f"received in {how.precision_down}"] if how.precision_down != "float32" else []
    options += [f"server step {rate}"] if (rate := how.server_rate(config)) != 1 else []
    options += [f"server optimizer {how.server_optimizer}"] if how.server_optimizer != "sgd" else []
    aggregation = how.type + (f" ({', '.join(options)})" if options else "")
    personal = f", personal {config.personal.type}" if config.personal.type != "none" else ""
    return f"supervision {supervision}, coordination {coordination}, aggregation {aggregation}{fedprox}{personal}"


def _labels_bought(config: Config) -> str:
    """The budget of labels, and who gives them."""
    how = config.supervision
    if not isinstance(how, Asking):
        return ""
    parts = [f"budget {100 * how.budget:g} %"]
    parts += ["spent evenly"] if how.spend == "even" else []
    parts += [f"at most {units.count(how.budget_total)} labels a client"] if how.budget_total is not None else []
    parts += [f"at most {units.count(how.budget_per_day)} a day"] if how.budget_per_day is not None else []
    parts += ["by people"] if how.labels_from == "desk" else []
    if isinstance(how, SelectionSupervision):
        parts += [f"rest {how.rest}"]
    if isinstance(how, CareSupervision) and how.selection == "random":
        parts += ["queries at random"]
    if how.shares_probes:
        parts += ["probes averaged"]
    return ", ".join(parts)


def _verdict(overall: Comparison, families: int) -> str | None:
    """The result in one sentence; None where before or after is missing."""
    before, after, change = overall.before, overall.after, overall.change
    if before is None or after is None or change is None:
        return None
    if change.low > 0 or change.high < 0:
        moved = "rose" if change.mean > 0 else "fell"
        tail = ""
    else:
        moved, tail = "went", "; the interval includes no change"
    mean = f", the mean over {families} families," if families > 1 else ""
    return (
        f"Pass@1 on {units.count(after.n)} held-out problems{mean} {moved} from {units.percent(before.mean)} to "
        f"{units.percent(after.mean)}: {units.signed(change.mean)} points, 95 % interval {units.signed(change.low)} to "
        f"{units.signed(change.high)}{tail}."
    )


def _evaluation_figure(records: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The curve over evaluated rounds, where there are more than two."""
    from markupsafe import Markup

    evaluated = evaluations(records)
    if len(evaluated) <= 2:
        return None
    sources: dict[str, list[tuple[int, float]]] = {}
    for round_, (_, by_source) in sorted(evaluated.items()):
        for source, value in by_source.items():
            sources.setdefault(source, []).append((round_, value.mean))
    sources = dict(sorted(sources.items())) if len(sources) > 1 else {}
    overall = {round_: value for round_, (value, _) in evaluated.items()}
    svg = draw_evaluations("Held-out pass@1 by round", overall, sources)
    return {"svg": Markup(svg), "sources": list(sources)}


def _training_figures(records: Sequence[Mapping[str, Any]], curves: Sequence[Curve]) -> list[dict[str, Any]]:
    from markupsafe import Markup

    order = _clients_drawn(records)
    figures = []
    for curve in curves:
        lines = series(records, curve.key)
        if not lines or (curve.both and not series(records, str(curve.dashed))):
            continue  # a number nobody has, such as the ratio where no group had a gradient
        if curve.key.startswith("labels_") and not any(value for line in lines.values() for _, value in line):
            continue  # nobody is asked
        if curve.key == "weight" and all(len({value for _, value in line}) == 1 for line in lines.values()):
            continue  # weights by examples
        dashed = series(records, curve.dashed) if curve.dashed else None
        # Every figure names the same clients in the same order, so that a client keeps its colour.
        named = {client: lines.get(client, []) for client in order}
        figures.append({"title": curve.title, "svg": Markup(draw_curves(curve, named, dashed))})
    return figures


def _server_step_figure(records: Sequence[Mapping[str, Any]]) -> Any:
    """The curve of the server's step over the rounds; None without one."""
    from markupsafe import Markup

    steps = [(record["round"], step) for record in records if (step := record.get("server_step"))]
    if not steps:
        return None
    rates = {"server": [(round_, step["learning_rate"]) for round_, step in steps]}
    cosines = {"server": [(round_, step["mean_cosine"]) for round_, step in steps if "mean_cosine" in step]}
    return Markup(draw_curves(STEP_CURVE, rates, cosines))


def _reward_curves(config: Config) -> list[Curve]:
    """A curve for each of several rewards; a run with one reward has no such numbers."""
    return [
        Curve(f"reward_{number}", f"Mean of reward {number}: {entry.use}, weight {entry.weight:g}", floor=False)
        for number, entry in enumerate(config.data.rewards, start=1)
    ]


def _labels(records: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The section on labels; None where no client tells of any, as with all labels."""
    from markupsafe import Markup

    lines = label_lines(records)
    if not lines:
        return None
    by_client = shares(records)
    parts = {"mean of the clients": mean_shares(by_client)} if len(by_client) > COLOURS else by_client
    colours = [number for _, number in FATE_TITLES]
    tables = {key: calibration(records, key) for key in ("calibration", "audit_calibration")}
    drawn = [
        (name, calibration_points(table) if table else [])
        for name, table in zip(
            ("labelled problems, before they were learnt from", "all problems"), tables.values(), strict=True
        )
    ]
    svg = draw_calibration("P1 against the share of majorities that are right", [points for _, points in drawn])
    return {
        "lines": lines,
        "audit": any(line.trusted_right is not None or line.gap is not None for line in lines),
        "figures": _training_figures(records, LABEL_CURVES),
        "fates": FATE_TITLES,
        "shares": [
            {"name": name, "svg": Markup(draw_shares(f"What became of the problems, {number}", rows, colours))}
            for number, (name, rows) in enumerate(parts.items(), start=1)
        ],
        "calibration": {
            "svg": Markup(svg),
            "names": [(number, name) for number, (name, points) in enumerate(drawn, start=1) if points],
        }
        if any(tables.values())
        else None,
    }


def _clients_drawn(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Everybody with a number to draw: who trained in some round."""
    keys = [curve.key for curve in CURVES]
    drawn = {name for _, name, numbers in client_numbers(records) if any(numbers.get(key) is not None for key in keys)}
    return sorted(drawn, key=natural)


_PHASES = {"train": "train", "evaluate": "evaluate", "aggregate": "aggregate"}
_CLIENT_PHASES = {"sample": "sample", "grade": "grade", "train": "learn", "evaluate": "evaluate"}
"""Titles of the phases that come first, in their order: the server's and the clients'."""


def _phases(sums: Totals) -> dict[str, Any]:
    """Seconds by phase: the server's wall clock, and the clients' own work added up."""
    return {
        "wall": _by_phase(sums.wall, _PHASES),
        "own": _by_phase(sums.client_seconds, _CLIENT_PHASES),
        "seconds": sum(sums.wall.values()),
    }


def _by_phase(seconds: Mapping[str, float], titles: Mapping[str, str]) -> list[tuple[str, float, float]]:
    """(title, seconds, part of the whole) of each phase that took time."""
    order = [phase for phase in titles if phase in seconds] + sorted(seconds.keys() - titles.keys())
    whole = sum(seconds.values())
    return [(titles.get(phase, phase), seconds[phase], seconds[phase] / whole) for phase in order if seconds[phase] > 0]


def _holdings_matrix(parts: Holdings) -> dict[str, Any]:
    """Clients by sources; each cell is (training, held-out)."""
    cells = {*parts["train"], *parts["test"]}
    clients = sorted({client for client, _ in cells}, key=natural)
    every = sorted({source for _, source in cells})
    sources = every[:_MOST_SOURCES]
    return {
        "sources": sources,
        "more": len(every) - len(sources),
        "rows": [
            (c, [(parts["train"].get((c, s), 0), parts["test"].get((c, s), 0)) for s in sources]) for c in clients
        ],
        "most": max(parts["train"].values(), default=0) or 1,
    }


def _settings(config: Config) -> list[tuple[str, list[tuple[str, str, bool]]]]:
    """Sections of (key, value, whether it differs from the default)."""
    defaults = Config().model_dump(mode="json")
    sections = []
    for section, values in config.model_dump(mode="json").items():
        standard = defaults[section]
        rows = [(k, _value(v), k not in standard or standard[k] != v) for k, v in values.items()]
        sections.append((section, rows))
    return sections


def _value(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    more = len(text) - _LONGEST_VALUE
    return text if more <= 0 else f"{text[:_LONGEST_VALUE]} ... ({units.count(more)} more characters in config.json)"
