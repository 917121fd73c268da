"""The result of an audit in words, and its page audit.html.

The sentences go by rules on the numbers of audit.json, one for each view and one for all canaries:

    the interval of the AUC lies above 0.7     training problems can be told from others
    it lies above 0.5                          they can be told a little better than by a guess
    it holds 0.5                               no better than a guess, and what the interval does not exclude
    it lies below 0.5                          the score points the wrong way
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from fedrlvr.errors import CheckpointError
from fedrlvr.files import atomic_text, read_json
from fedrlvr.reporting.figures import draw_roc
from fedrlvr.reporting.page import page_template

AUDIT_FILE, PAGE_FILE = "audit.json", "audit.html"
SHOWS = 0.7
"""AUC above which an attack is said to tell members."""
LEAST_TOLD = 1.0
"""Bits by which exposure must have risen for a canary to count as learnt."""
WHO = {
    "server": "The server, which has each client's own adapter",
    "site": "Another site, which has the global adapter",
    "public": "The public, which can only ask the model",
}
ATTACK_TITLES = {
    "diba": "gain and drift (DIBA)",
    "gain": "reward gain",
    "drift": "policy drift",
    "loss": "loss",
    "reference": "loss against the base model",
}
_STRONGEST = {"server": "diba", "site": "diba", "public": "gain"}
"""The attack that a view's sentence is about, chosen beforehand, so that no attack is picked by its result."""

Curves = Mapping[str, Mapping[str, Sequence[tuple[float, float]]]]
"""ROC curves by view and attack."""


def sentences(audit: Mapping[str, Any]) -> list[str]:
    """The audit in plain words. audit: the content of audit.json."""
    lines = []
    for row in audit["membership"]:
        if row["attack"] == _STRONGEST[row["view"]]:
            lines.append(f"{WHO[row['view']]}, {_told(row)}")
    for view, canaries in audit["canaries"].items():
        if canaries:
            lines.append(_exposed(view, canaries))
    for view, returned in audit["returned"].items():
        share = f"{returned['private']} of {returned['responses']}"
        lines.append(f"{WHO[view]}: {share} responses to problems that are not private held a client's private text.")
    return lines


def _told(row: Mapping[str, Any]) -> str:
    area, n = row["auc"], f"{row['members']} training and {row['others']} other problems"
    attack, bounds = ATTACK_TITLES[row["attack"]], f"{area['low']:.2f} to {area['high']:.2f}"
    interval = f"{attack}: AUC {area['value']:.2f}, 95 % interval {bounds}, {n}"
    if area["low"] > SHOWS:
        return f"can tell training problems from others of the same kind ({interval})."
    if area["low"] > 0.5:
        return f"can tell training problems from others a little better than by a guess ({interval})."
    if area["high"] < 0.5:
        return f"found a score that points the wrong way: training problems look less like training ({interval})."
    return (
        f"did no better than a guess by this attack; an AUC of up to {area['high']:.2f} is not excluded ({interval})."
    )


def _exposed(view: str, canaries: Sequence[Mapping[str, Any]]) -> str:
    parts = []
    for times in sorted({canary["times"] for canary in canaries}):
        of = [canary for canary in canaries if canary["times"] == times]
        rise = fmean(canary["exposure"] - canary["base"] for canary in of)
        word = "learnt" if rise >= LEAST_TOLD else "not learnt"
        returned = fmean(canary["returned"] for canary in of)
        parts.append(
            f"planted {times} times {word} ({rise:+.1f} bits over the base model, of {of[0]['most']:.1f}; "
            f"{100 * returned:.0f} % of responses return it)"
        )
    return f"{WHO[view]}: canaries {'; '.join(parts)}."


def read_audit(directory: Path) -> dict[str, Any] | None:
    """The content of audit.json in the directory of a run; None where there is none.

    Raises:
        CheckpointError: the file cannot be read.
    """
    path = directory / AUDIT_FILE
    if not path.exists():
        return None
    try:
        audit = read_json(path)
        sentences(audit)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}). Delete it, or audit the run again.") from None
    return dict(audit)


def write_audit(directory: Path, title: str, audit: Mapping[str, Any], curves: Curves) -> Path:
    """Write audit.json and audit.html; returns the path of the page.

    Raises:
        CheckpointError: a file cannot be written.
    """
    try:
        atomic_text(directory / AUDIT_FILE, json.dumps(audit, indent=1) + "\n")
        atomic_text(directory / PAGE_FILE, audit_page(title, audit, curves))
    except OSError as error:
        raise CheckpointError(f"{directory}: the audit cannot be written ({error.strerror}).") from error
    return directory / PAGE_FILE


def audit_page(title: str, audit: Mapping[str, Any], curves: Curves) -> str:
    """The text of audit.html, which needs no other file."""
    from markupsafe import Markup

    figures = [
        {"title": WHO[view], "attacks": list(of), "svg": Markup(draw_roc(f"ROC curves, {view}", list(of.values())))}
        for view, of in curves.items()
    ]
    return page_template("audit.html.jinja").render(
        title=title, audit=audit, sentences=sentences(audit), figures=figures, who=WHO, attacks=ATTACK_TITLES
    )
