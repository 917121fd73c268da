"""The section [prompt]: its old names, its files, and what it does not go together with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from factories import make_site

from fedrlvr.config import PromptConfig, load_config, load_resolved, parse_config
from fedrlvr.config.prompt import LONGEST_TEXT, MOST_CHARACTERS, RUN_WIDE, Shot, Wording
from fedrlvr.errors import ConfigError

SHOT = {"prompt": "1+1=", "answer": "2"}


def refused(**tree: Any) -> str:
    with pytest.raises(ConfigError) as error:
        parse_config(tree)
    return str(error.value)


@pytest.mark.parametrize(
    ("tree", "name", "new"),
    [
        ({"model": {"chat_template": False}}, "model.chat_template", "prompt.chat"),
        ({"data": {"instruction": ""}}, "data.instruction", "prompt.instruction"),
        (
            {"federation": {"deviations": {"client-1": {"prompt_template": "Q: {prompt}"}}}},
            "federation.deviations.client-1.prompt_template",
            "federation.deviations.client-1.template",
        ),
    ],
)
def test_old_names_are_refused_with_the_new_ones(tree: dict[str, Any], name: str, new: str, tmp_path: Path) -> None:
    assert f"{name} is now called {new}" in refused(**tree)
    (section, values), *_ = tree.items()
    (setting, value), *_ = values.items()
    if section != "federation":
        with pytest.raises(ConfigError, match=f"{name} is now called {new}"):
            load_config(None, [f"{section}.{setting}={json.dumps(value)}"])
    (tmp_path / "config.json").write_text(json.dumps(tree), "utf-8")
    with pytest.raises(ConfigError, match=f"{name} is now called {new}"):
        load_resolved(tmp_path / "config.json")


def test_the_old_name_in_a_site_file_is_refused_with_the_new_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tasks\.main\.instruction: .*tasks\.main\.prompt\.instruction"):
        make_site(tmp_path / "a", tasks={"main": {"name": "jsonl", "path": "p", "instruction": ""}})
    with pytest.raises(ConfigError, match=r"tasks\.main\.prompt\.instuction.*tasks\.main\.prompt\.instruction"):
        make_site(tmp_path / "b", tasks={"main": {"name": "jsonl", "path": "p", "prompt": {"instuction": ""}}})
    with pytest.raises(ConfigError, match=r"tasks\.main\.prompt\.prefill"):
        make_site(tmp_path / "c", tasks={"main": {"name": "jsonl", "path": "p", "prompt": {"prefill": "x"}}})


def test_a_template_may_lie_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("ask.jinja").write_text("Q: {{ prompt }}\nA:\n", "utf-8")
    for config in (
        load_config(None, ["prompt.template=ask.jinja"]),
        parse_config({"prompt": {"template": "ask.jinja"}}),
    ):
        assert config.prompt.template == "Q: {{ prompt }}\nA:"
    site = tmp_path / "site"
    site.mkdir()
    (site / "own.jinja").write_text("Own: {{ prompt }}", "utf-8")
    org = make_site(site, tasks={"main": {"name": "jsonl", "path": "p", "prompt": {"template": "own.jinja"}}})
    assert org.task("main").prompt.template == "Own: {{ prompt }}"
    Path("long.jinja").write_text("{{ prompt }}" + "x" * LONGEST_TEXT, "utf-8")
    for name in ("none.jinja", "long.jinja", "."):
        with pytest.raises(ConfigError, match=r"prompt\.template"):
            load_config(None, [f"prompt.template={name}"])
    with pytest.raises(ValueError, match="prompt"):  # what another party sends is never a path
        PromptConfig(template="ask.jinja")


@pytest.mark.parametrize(
    ("prompt", "others", "names"),
    [
        ({"examples": 2}, {"supervision": {"type": "care"}}, ("prompt.examples", "supervision.type = 'care'")),
        ({"examples": 2}, {"supervision": {"type": "majority"}}, ("prompt.examples", "supervision.type = 'majority'")),
        (
            {"examples": 2},
            {"coordination": {"type": "pubswap"}, "data": {"public_size": 8}},
            ("prompt.examples", "coordination.type = 'pubswap'"),
        ),
        ({"examples": 1, "shots": [{"prompt": "a", "answer": "b"}]}, {}, ("prompt.examples", "prompt.shots")),
        ({"template": "{{ prompt }}{{ unit }}", "shots": [SHOT]}, {}, ("prompt.template", "'unit'", "prompt.shots")),
        ({"chat": "off", "template_args": {"x": 1}}, {}, ("prompt.template_args", "prompt.chat = 'off'")),
        ({"template_args": {"chat_template": "x"}}, {}, ("prompt.template_args", "'chat_template'")),
        ({"template_args": {"return_dict": True}}, {}, ("prompt.template_args", "'return_dict'")),
        ({"shots": [{"prompt": "a" * 7000, "answer": "b"}] * 5}, {}, ("prompt.shots", f"{MOST_CHARACTERS:,}")),
        (
            {"template": "{{ prompt }}"},
            {"federation": {"deviations": {"client-1": {"template": "Q: {{ prompt }}"}}}},
            ("federation.deviations.client-1.template", "prompt.template"),
        ),
        (
            {},
            {"federation": {"deviations": {"client-1": {"template": "{{ prompt }} {{ instruction }}"}}}},
            ("instruction",),
        ),
    ],
)
def test_settings_that_do_not_go_together_are_both_named(
    prompt: dict[str, Any], others: dict[str, Any], names: tuple[str, ...]
) -> None:
    text = refused(prompt=prompt, **others)
    assert all(name in text for name in names), text


def test_shots_may_lack_a_column_that_a_template_can_do_without() -> None:
    assert PromptConfig.model_validate({"template": "{{ prompt }}{{ unit | default('') }}", "shots": [SHOT]}).shots


def test_a_tasks_own_wording_takes_the_place_of_the_servers() -> None:
    server = PromptConfig(instruction="Server's.", system="S", examples=3, chat="off", prefill="x")
    assert server.worded(Wording()) == server
    worded = server.worded(Wording(instruction="", shots=[Shot(prompt="1", answer="1")]))
    assert (worded.instruction, worded.system, worded.examples, len(worded.shots)) == ("", "S", 0, 1)
    assert (worded.chat, worded.prefill) == ("off", "x")
    assert server.worded(Wording(system=None)).system is None, "stated as unset"
    assert {"chat", "template_args", "prefill", "stop"} == RUN_WIDE
