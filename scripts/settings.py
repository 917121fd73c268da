"""Writes docs/settings.md from the configuration's own sections: `python -m scripts.settings`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic.fields import FieldInfo

from fedrlvr.config import Config
from fedrlvr.config.also import AlsoConfig
from fedrlvr.config.federation import Deviation
from fedrlvr.config.problems import RewardConfig
from fedrlvr.config.prompt import RUN_WIDE
from fedrlvr.config.reference import SettingRow, describe, members, summary, types
from fedrlvr.deployment.site.config import EgressConfig, Limits, MachineConfig, SiteConfig

PAGE = Path(__file__).parent.parent / "docs" / "settings.md"
_INTRO = """\
# Settings

A federation has two kinds of files. The *experiment file* (`exp.toml`) describes a run: `fedrlvr run exp.toml`
simulates it on one machine, `fedrlvr federate exp.toml` runs it with organisations. The *site file* (`site.toml`, made
by `fedrlvr site init`) belongs to one organisation, never leaves it, and limits what a server may ask for.

Give a setting in its section of the file, or on the command line, which overrides the file:

```toml
[train]
rounds = 20
```

```sh
fedrlvr run exp.toml --set train.rounds=20
```

An unknown setting is an error that names the nearest known one. So is a setting that has no effect with the others.
*Unset* means that the file does not name the setting, since TOML has no value for it. The column *file* says where a
setting may stand: in the experiment file, in the site file, or in both. The column *since* is the version in which the
setting first had its name.

This page is generated from the code: `python -m scripts.settings` writes it, and the tests compare it.
"""
_SHARED = {
    "data": "In the site file each task has these settings, as `[tasks.NAME]`.",
    "prompt": "In the site file a task may state those that are in both files, as `[tasks.NAME.prompt]`; they take the "
    "place of the server's.",
    "engine": "The site file has the same section for the organisation's machine.",
}


def everything() -> Iterator[SettingRow]:
    """Every setting of both files."""
    for name, info in Config.model_fields.items():
        yield from describe(name, info)
    yield from describe("deviations", FieldInfo(annotation=Deviation))
    yield from describe("also", FieldInfo(annotation=AlsoConfig))
    yield from describe("rewards", FieldInfo(annotation=RewardConfig))
    for name, section in (
        ("site", SiteConfig),
        ("machine", MachineConfig),
        ("limits", Limits),
        ("egress", EgressConfig),
    ):
        yield from describe(name, FieldInfo(annotation=section))


def page() -> str:
    """The text of docs/settings.md."""
    lines = [_INTRO, "## Experiment file", ""]
    for name, info in Config.model_fields.items():
        classes = members(info.annotation)
        lines += [f"### [{name}]", "", info.description or summary(classes[0])]
        lines += [_SHARED[name]] if name in _SHARED else []
        lines += [""] + [
            f"- {' or '.join(f'`{kind}`' for kind in types(member))}: {summary(member)}"
            for member in classes
            if len(classes) > 1
        ]
        lines += ([""] if len(classes) > 1 else []) + _table(describe(name, info))
        if name == "data":
            lines += ["#### Entries of data.rewards", "", summary(RewardConfig), ""]
            lines += _table(describe("rewards", FieldInfo(annotation=RewardConfig)))
        if name == "evaluate":
            lines += ["#### [evaluate.also]", "", summary(AlsoConfig), ""]
            lines += _table(describe("also", FieldInfo(annotation=AlsoConfig)))
        if name == "federation":
            lines += ["#### [federation.deviations.NAME]", "", summary(Deviation), ""]
            lines += _table(describe("deviations", FieldInfo(annotation=Deviation)))
    lines += ["## Site file", "", "### Top of the file", "", summary(SiteConfig), ""]
    lines += _table(describe("site", FieldInfo(annotation=SiteConfig)))
    for name, section in (("machine", MachineConfig), ("limits", Limits), ("egress", EgressConfig)):
        lines += [f"### [{name}]", "", summary(section), "", *_table(describe(name, FieldInfo(annotation=section)))]
    return "\n".join(lines).rstrip() + "\n"


def _table(settings: Iterator[SettingRow]) -> list[str]:
    rows = ["| setting | type | default | what it is | file | since |", "|---|---|---|---|---|---|"]
    for setting in settings:
        cells = (f"`{setting.name}`", setting.type, _code(setting.default), setting.sentence)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + f" | {_file(setting)} |")
        rows[-1] += f" {setting.since} |"
    return [*rows, ""]


def _code(default: str) -> str:
    return default if default in ("required", "unset") else f"`{default}`"


def _file(setting: SettingRow) -> str:
    if setting.section in ("site", "machine", "limits", "egress"):
        return "site"
    return (
        "both"
        if setting.section in (*_SHARED, "rewards") and setting.name not in {"public_size", *RUN_WIDE}
        else "experiment"
    )


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
