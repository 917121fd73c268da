"""Description of all that travels in a run: shown before it starts, and again with sizes once the model is there."""

from __future__ import annotations

from collections.abc import Iterator

from fedrlvr.config import Config, LabelsSupervision, PubSwapCoordination
from fedrlvr.errors import ConfigError
from fedrlvr.reporting import units

_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}


def check(config: Config) -> None:
    """Check that a configuration can be run by organisations on their own machines.

    Raises:
        ConfigError: it cannot; the text names the setting.
    """
    if config.federation.arm != "federated":
        raise ConfigError(
            f"federation.arm = {config.federation.arm!r} is a reference for one machine, where nothing travels. Run it "
            "with `fedrlvr run`, or set federation.arm = 'federated'."
        )
    if config.supervision.type == "demonstrations":
        raise ConfigError(
            "supervision.type = 'demonstrations': supervised training exists on one machine only (`fedrlvr sft`). Its "
            "adapter can be the start of a run with organisations: model.adapter."
        )
    if config.run.verdict:
        raise ConfigError(
            "run.verdict: the problems that a verdict is about stay at the organisations. Leave it out; each "
            "organisation makes its own with `fedrlvr site verdict`."
        )
    if config.run.ledgers is not None:
        raise ConfigError("run.ledgers: each organisation keeps its own ledger, in its own directory. Leave it out.")
    if config.data.train_on_public:
        raise ConfigError(
            "data.train_on_public: organisations train on the problems of their own machines alone. Leave it out, or "
            "give them the public problems as part of their own."
        )
    if config.run.secrets is not None:
        raise ConfigError("run.secrets: each organisation has its own secret, in its own directory. Leave it out.")
    if config.federation.deviations:
        raise ConfigError(
            "federation.deviations: each organisation holds its own problems, and deviations are for experiments on "
            "one machine. Leave it out."
        )


def travels(config: Config, numbers: int | None = None, change: bool = False) -> Iterator[str]:
    """Lines of text: the data that go to each organisation, those that come from it, and those that never travel.

    numbers: of an adapter of the largest rank, where known. change: rules send a change of the base weights too.
    """
    public = config.coordination if isinstance(config.coordination, PubSwapCoordination) else None
    how = config.aggregation if numbers is None else config.aggregation.settled(config, 4 * numbers)

    def sized(each: int) -> str:
        if numbers is None or config.personal.method.keeps is not None:  # not all of them travel
            return ""
        return f" ({numbers:,} numbers, {units.size(each * numbers)})"

    yield (
        f"To each organisation, each round: the settings of this run; {config.personal.method.down}"
        + sized(_BYTES[how.precision_down])
        + ("; the change of the base weights" if change else "")
        + ("; the average of CARE's probes" if config.supervision.shares_probes else "")
    )
    if public is not None:
        yield (
            f"  and {public.exchanges} x {public.public_problems} public problems with their answers"
            + ("" if not public.swap_rule.trades else ", and others' correct responses to them, without their names")
        )
    if config.privacy.unit != "none":
        yield from _noised(config, config.personal.method.up + sized(_BYTES[how.number_format]))
        return
    travelling = config.personal.method.up + sized(_BYTES[how.number_format])
    up = f"From each organisation, each round: {travelling}"
    yield (
        up
        + "; numbers (rewards, losses, token counts, seconds; docs/report.md lists them)"
        + ("; CARE's probes" if config.supervision.shares_probes else "")
    )
    if public is not None and (public.swap_rule.trades or config.aggregation.gains_are_public):
        yield (
            f"  and its {public.exchanges} x {public.public_problems} x {config.sampling.group_size} responses to the "
            "public problems"
        )
    if excluded := config.federation.excluded:
        yield f"  never an adapter from {', '.join(excluded)}, which federation.excluded keeps from training"
    yield "  and when evaluated: pass@1 sums by source, with the names of its sources"
    finishes = config.personal.method.finishes
    if finishes:
        yield (
            f"  and after the last round: numbers and scores of the personal adapter that it makes by "
            f"{config.personal.steps} more local steps"
        )
    yield (
        "Never: its own problems, their answers, its responses to them, "
        + ("its personal adapter, " if finishes else "")
        + ("" if isinstance(config.supervision, LabelsSupervision) else "labels, ")
        + "its optimizer and random state"
    )
    yield (
        "By its own site.toml an organisation may refuse a request, withhold a reply, pool small sources and round its "
        "numbers (docs/privacy.md)"
    )


def _noised(config: Config, adapter: str) -> Iterator[str]:
    """Lines about what organisations send in a run with differential privacy. adapter: in words, with its size."""
    privacy = config.privacy
    yield (
        f"From each organisation, each round: {adapter} with noise, and no number. All {config.train.rounds} rounds "
        f"are together ({privacy.epsilon:g}, {privacy.delta:g})-differentially private for an organisation's whole "
        "training data, against the server too"
    )
    if privacy.unnoised_scores:
        yield "  and when evaluated, without noise: pass@1 sums by source, with the names of its sources"
    yield "Never: its own problems, their answers, its responses to them, labels, its optimizer and random state"
    yield "By its own site.toml an organisation may have a budget over all runs (docs/differential-privacy.md)"
