"""compliance.html: the facts of a run, laid out by GDPR article 35, EU AI Act annex IV and SATRE 3.3.07.

Every value comes from the run's files, and with a site also from its site.toml and decision log. What only an
organisation can write is left blank. The page is no legal assessment, and says nothing about whether an adapter is
personal data. No problem, response or answer is read for it.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedrlvr.deployment.superlink.disclosure import travels
from fedrlvr.files import atomic_text
from fedrlvr.privacy.decision_log import DecisionLog
from fedrlvr.reporting import units
from fedrlvr.reporting.audit_page import read_audit, sentences
from fedrlvr.reporting.page import page_template
from fedrlvr.reporting.provenance import latest_versions, read_about
from fedrlvr.reporting.scores import summarise
from fedrlvr.server.metrics_log import read_metrics
from fedrlvr.server.model_card import CARD, base_name, documents, read_facts
from fedrlvr.server.saved_adapter import SavedRun

if TYPE_CHECKING:
    from fedrlvr.deployment.site.config import Organisation

PAGE_FILE = "compliance.html"
SETTINGS: Mapping[str, Sequence[str]] = {
    "federation": ("arm", "clients", "quorum", "withdrawn"),
    "partition": ("type",),
    "train": ("rounds", "local_steps", "problems_per_step", "learning_rate"),
    "sampling": ("group_size", "max_new_tokens"),
    "lora": ("rank",),
    "supervision": ("type",),
    "coordination": ("type",),
    "personal": ("type",),
    "aggregation": ("type", "weights", "robust", "precision", "keep_adapters"),
    "run": ("seed", "responses"),
    "evaluate": ("every",),
}
"""Settings that say what is computed and what travels; texts of prompts and paths are not among them."""


@dataclass(frozen=True)
class PageEntry:
    """A line of the page. lines: what the run's files say; empty: only the organisation can write it."""

    label: str
    lines: Sequence[str] = ()
    blank: str = ""
    """A hint at the lines that the organisation adds."""


@dataclass(frozen=True)
class Chapter:
    """One of the texts by which the page is laid out, or the facts that it is filled from."""

    title: str
    entries: Sequence[PageEntry]


@dataclass(frozen=True)
class ComplianceFacts:
    """Facts of a run by topic, in lines of text."""

    flow: Sequence[str]
    data: Sequence[str]
    settings: Sequence[str]
    limits: Sequence[str]
    log: Sequence[str]
    epsilon: Sequence[str]
    audit: Sequence[str]
    scores: Sequence[str]
    lineage: Sequence[str]
    withdrawn: Sequence[str]
    card: str = field(repr=False, default="")


@dataclass(frozen=True)
class SiteFacts:
    """Facts that an organisation's own files add.

    name: of the organisation. state: its state directory. limits: value and default of each limit and egress setting.
    """

    name: str
    state: Path
    limits: Mapping[str, tuple[Any, Any]]


def site_facts(org: Organisation) -> SiteFacts:
    """The limits and egress settings of an organisation. Its canaries are private texts and only counted."""
    limits = {}
    for name, section in (("limits", org.config.limits), ("egress", org.config.egress)):
        defaults = type(section)()
        for setting in type(section).model_fields:
            value, default = getattr(section, setting), getattr(defaults, setting)
            limits[f"{name}.{setting}"] = (len(value), 0) if setting == "canaries" else (value, default)
    return SiteFacts(org.name, org.state, limits)


def facts_of(run: SavedRun, site: SiteFacts | None = None) -> ComplianceFacts:
    """Facts of a run as its files have them.

    Raises:
        CheckpointError: one of these files is damaged.
    """
    config, place = run.config, run.directory
    records = read_metrics(place) if (place / "metrics.jsonl").exists() else []
    adapter = run.adapter_round
    facts = read_facts(place, config, adapter, None, rank=config.lora.largest, alpha=config.lora.alpha, merged=False)
    audit = read_audit(place if site is None else site.state / "audit")
    return ComplianceFacts(
        flow=list(travels(config)),
        data=[
            f"{len(config.federation.names)} clients: {', '.join(config.federation.names)}",
            *(f"{name}: {units.count(count)} training problems" for name, count in facts.problems.items()),
        ],
        settings=[
            f"{section}.{name} = {getattr(getattr(config, section), name, 'not used')}"
            for section, names in SETTINGS.items()
            for name in names
        ],
        limits=list(_limits(site)),
        log=list(_log(place if site is None else site.state)),
        epsilon=["none: no noise is added, and no privacy budget is spent"],
        audit=[] if audit is None else [f"Adapter of round {audit['round']}.", *sentences(audit), *audit["notes"]],
        scores=list(_scores(records)),
        lineage=list(_lineage(run)),
        withdrawn=[f"{name}: {how}" for name, how in facts.withdrawn.items()],
        card=documents(facts, None)[CARD],
    )


def _limits(site: SiteFacts | None) -> Iterator[str]:
    for name, (value, default) in (site.limits if site else {}).items():
        yield f"{name} = {value}" + ("" if value == default else f" (default {default})")


def _log(directory: Path) -> Iterator[str]:
    log = DecisionLog(directory)
    if not log.path.exists():
        return
    result = log.verify()
    yield f"{result.head.lines} lines, {'in order' if not result.fault else f'NOT in order: {result.fault}'}"
    yield f"head: {result.head.digest}"
    for decision, count in sorted(Counter(str(entry.get("decision")) for entry in log.entries()).items()):
        yield f"{decision}: {count}"


def _scores(records: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    scores = summarise(records)
    for label, estimate in (("before", scores.overall.before), ("after", scores.overall.after)) if scores else ():
        if estimate is not None:
            yield f"pass@1 {label}: {units.with_interval(estimate)} on {units.count(estimate.n)} held-out problems"


def _lineage(run: SavedRun) -> Iterator[str]:
    config, about = run.config, read_about(run.directory)
    yield f"run {config.run.name}, round {run.adapter_round} of {config.train.rounds}"
    yield f"base model: {base_name(config)}"
    yield f"start: {'another adapter (model.adapter)' if config.model.adapter else 'the base model'}"
    for name in ("config.json", "adapter/adapter_model.safetensors"):
        path = run.directory / name
        if path.is_file():
            yield f"SHA-256 of {name}: {hashlib.sha256(path.read_bytes()).hexdigest()}"
    if versions := latest_versions(about):
        yield "versions: " + ", ".join(f"{name} {version}" for name, version in versions.items())


def chapters(facts: ComplianceFacts) -> list[Chapter]:
    """The page's chapters: each text's own headings, filled from the facts."""
    risks = [
        "The server's operator reads every adapter and number; other organisations get their average.",
        "An adapter is computed from private problems. docs/privacy.md lists what was recovered by attacks, with and "
        "without floors, and what cannot be proved.",
        *facts.audit,
    ]
    measures = [*facts.limits, *facts.log, *facts.epsilon]
    approval = [line for line in facts.limits if line.startswith("egress.")]
    return [
        Chapter(
            "Facts of the run",
            [
                PageEntry("Data flow", facts.flow),
                PageEntry("Data", facts.data),
                PageEntry("Settings", facts.settings),
                PageEntry(
                    "Limits of the organisation", facts.limits, "" if facts.limits else "name the site: --site DIR"
                ),
                PageEntry("Decision log", facts.log, "the head as it was noted elsewhere"),
                PageEntry("Epsilon", facts.epsilon),
                PageEntry(
                    "Audit by attacks", facts.audit, "" if facts.audit else "fedrlvr audit, or fedrlvr site audit"
                ),
                PageEntry("Withdrawn clients", facts.withdrawn or ["none"]),
                PageEntry("Scores", facts.scores),
                PageEntry("Lineage", facts.lineage),
            ],
        ),
        Chapter(
            "GDPR, article 35(7): data protection impact assessment",
            [
                PageEntry("(a) Processing operations", [*facts.flow, *facts.data]),
                PageEntry("(a) Purposes, and legitimate interest where it is pursued"),
                PageEntry("(b) Necessity and proportionality", (), "why training needs these problems, and no fewer"),
                PageEntry("(c) Risks to the rights and freedoms of data subjects", risks, "likelihood and severity"),
                PageEntry("(d) Measures, safeguards and mechanisms", measures, "organisational measures"),
                PageEntry("Advice of the data protection officer (35(2)), views of data subjects (35(9))"),
            ],
        ),
        Chapter(
            "EU AI Act, annex IV: technical documentation",
            [
                PageEntry(
                    "1 General description", facts.lineage, "intended purpose, provider, users, instructions for use"
                ),
                PageEntry(
                    "2 Elements and development", [*facts.settings, *facts.data], "data provenance, labelling, cleaning"
                ),
                PageEntry("3 Monitoring, functioning and control", facts.scores, "limits of use, human oversight"),
                PageEntry("4 Appropriateness of the performance metrics", (), "why pass@1 on held-out problems fits"),
                PageEntry("5 Risk management system (article 9)", risks),
                PageEntry("6 Changes through the lifecycle", [*facts.lineage, *facts.withdrawn]),
                PageEntry("7 Harmonised standards applied"),
                PageEntry("8 EU declaration of conformity"),
                PageEntry("9 Post-market monitoring plan (article 72)"),
            ],
        ),
        Chapter(
            "SATRE 3.3.07: approval before outputs leave",
            [
                PageEntry("Rule or person that approves", approval, "who may approve, and by which procedure"),
                PageEntry("Record of decisions", facts.log),
                PageEntry("Checks before release", facts.audit, "statistical disclosure control by the organisation"),
            ],
        ),
    ]


def write_compliance(run: SavedRun, site: SiteFacts | None = None, to: Path | None = None) -> Path:
    """Write compliance.html to the run's directory, or to another one, and return its path.

    Raises:
        CheckpointError: a file of the run is damaged, or the page cannot be written.
    """
    facts = facts_of(run, site)
    path = (to or run.directory) / PAGE_FILE
    page = page_template("compliance.html.jinja").render(
        name=run.config.run.name, site=site.name if site else "", chapters=chapters(facts), card=facts.card
    )
    atomic_text(path, page)
    return path
