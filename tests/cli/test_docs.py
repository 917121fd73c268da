"""README and docs/: every fenced block is a kind that a test takes, every link leads somewhere, every interval was
measured. What the commands do is in test_docs_runs.py."""

from __future__ import annotations

import ast
import json
import re
import tomllib
from pathlib import Path

import click
import pytest
import typer
from docpages import DOCS, FENCE, PAGES, ROOT, Block, anchors, block, blocks, commands, prose

from fedrlvr.aggregation.lora_rule import RULES
from fedrlvr.cli.main import app
from fedrlvr.config import PromptConfig, load_config, parse_config
from fedrlvr.config.experiment import Config
from fedrlvr.deployment.site.config import SiteConfig
from fedrlvr.wire.messages import NUMBERS

BLOCKS = [block for page in PAGES for block in blocks(page)]
LANGUAGES = {"sh", "python", "toml", "json", "text"}
"""`text` is what a command prints, shortened with `...`."""
SYSTEM = {"pip", "cp", "systemctl", "git"}
"""Commands of the system, which only need to be allowed here."""
CONFIGURED = {"run", "sweep", "tasks", "validate", "federate", "eval"}
"""Commands of `fedrlvr` that take a configuration and `--set`."""
AT_THE_MERGE = {"own-model.md"}
"""Pages that other branches bring."""


def of(*languages: str) -> pytest.MarkDecorator:
    chosen = [block for block in BLOCKS if block.language in languages]
    return pytest.mark.parametrize("block", chosen, ids=[block.name for block in chosen])


def parsed(words: list[str]) -> tuple[str, dict[str, object]]:
    """The last name of a `fedrlvr` command, and its parameters; an error of click's if an option is unknown."""
    command, words = typer.main.get_command(app), words[1:]
    while isinstance(command, click.Group) and words[0] != "--help":
        command, words = command.commands[words[0]], words[1:]
    if words == ["--help"]:
        return str(command.name), {}
    return str(command.name), command.make_context(str(command.name), list(words)).params


def check_command(words: list[str]) -> None:
    """A command exists, takes these options, and its settings parse."""
    if words[0] == "sudo":
        words = words[3:]  # sudo -u NAME
    program = words[0].rpartition("/")[2]
    if program == "fedrlvr":
        name, given = parsed(words)
        if name in CONFIGURED:
            path = given.get("config")
            shipped = path if path and (ROOT / str(path)).is_file() else None
            varied = [
                f"{key}={value}"
                for key, _, values in (v.partition("=") for v in given.get("vary") or ())
                for value in values.split(",")
            ]
            for more in [None, *varied]:
                load_config(
                    shipped and ROOT / str(shipped), [*(given.get("overrides") or ()), *([more] if more else [])]
                )
    elif words[0].startswith("scripts/"):
        assert (ROOT / words[0]).is_file(), words
        if words[0] == "scripts/bench":
            source = (ROOT / "benchmarks" / f"{words[1]}.py").read_text("utf-8")
            for option in (word for word in words if word.startswith("--")):
                assert f'"{option}"' in source, f"{words[1]} has no {option}"
        assert all((ROOT / word).exists() for word in words[1:] if word.startswith("tests/")), words
    elif program == "python":
        assert (ROOT / words[1]).is_file(), words
    else:
        assert program in SYSTEM, f"{words}: neither a command of ours nor a known one of the system"
        assert all((ROOT / word).exists() for word in words if word.startswith("examples/")), words


def test_every_block_has_a_known_kind() -> None:
    assert not [block.name for block in BLOCKS if block.language not in LANGUAGES]


def test_no_command_hides_in_an_indented_block() -> None:
    """Formulas, trees and drawings are indented; what somebody would type is fenced."""
    hidden = [
        f"{page.relative_to(ROOT)}: {line}"
        for page in PAGES
        for line in page.read_text("utf-8").splitlines()
        if re.match(r"    (fedrlvr [a-z]|scripts/\w+ |python |pip )", line) and "<-" not in line
    ]
    drawings = [line for line in hidden if "fedrlvr federate -> SuperLink" in line]
    assert not set(hidden) - set(drawings)


@of("sh")
def test_a_command_takes_its_options(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, "middle", RULES["fedit"])  # the rule that docs/extending.md adds
    listed = list(commands(block))
    assert listed
    for words in listed:
        check_command(words)


def test_a_command_in_a_table_takes_its_options() -> None:
    spans = [
        span
        for page in PAGES
        for span in re.findall(r"`(fedrlvr [^`]+|python examples/[^`]+)`", page.read_text("utf-8"))
    ]
    full = [span for span in spans if "..." not in span and "|" not in span]
    assert len(full) > 10
    for span in full:
        words = span.split()
        if words[0] == "python" or any(not word.isalpha() for word in words[1:]):
            check_command(words)
            continue
        command: click.Command = typer.main.get_command(app)  # only the name of a command
        for word in words[1:]:
            assert isinstance(command, click.Group), span
            command = command.commands[word]


@of("toml")
def test_a_configuration_parses(block: Block) -> None:
    """An experiment's, candidates of `fedrlvr prompts`, or some settings of an organisation's file."""
    tree = tomllib.loads(block.text)
    if set(tree) <= set(Config.model_fields):
        parse_config(tree)
    elif all(isinstance(table, dict) and set(table) <= set(PromptConfig.model_fields) for table in tree.values()):
        for table in tree.values():
            parse_config({"prompt": table})
    else:
        needed = {"name": "clinic-a", "superlink": "127.0.0.1:18000", "tasks": {"main": {"name": "jsonl", "path": "."}}}
        SiteConfig.model_validate({**needed, "models": {"embedded": "embedded"}, **tree})


@of("json")
def test_rows_are_json(block: Block) -> None:
    for line in block.text.splitlines():
        assert isinstance(json.loads(line), dict)


@of("python")
def test_a_snippet_compiles(block: Block) -> None:
    """And is run: by test_docs_runs.py, or here where its first line says that it is no program."""
    if block.directive.startswith("entry of RULES"):
        ast.parse(block.text.strip().removesuffix(","))
    else:
        compile(block.text, block.name, "exec")
    runs = (ROOT / "tests" / "cli" / "test_docs_runs.py").read_text("utf-8")
    assert f'"{block.page.relative_to(ROOT)}", "python"' in runs, "no test runs a snippet of this page"


def targets(page: Path) -> list[tuple[Path, str]]:
    """Files and anchors that a page links to within the project."""
    addresses = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    links = [link for link in addresses if not re.match(r"[a-z]+:", link)]
    return [
        ((page.parent / link.partition("#")[0]).resolve() if link[0] != "#" else page, link.partition("#")[2])
        for link in links
    ]


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_anchors_lead_somewhere(page: Path) -> None:
    for path, anchor in targets(page):
        if path.name in AT_THE_MERGE and not path.exists():
            continue
        assert path.exists(), f"{page.name} links to {path}, which is not there"
        assert not anchor or anchor in anchors(path), f"{page.name} links to {path.name}#{anchor}"


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached, ahead = set(), [ROOT / "README.md"]
    while ahead:
        page = ahead.pop()
        if page not in reached and page.suffix == ".md" and page.exists():
            reached.add(page)
            ahead += [path for path, _ in targets(page)]
    assert not sorted(str(path) for path in set(DOCS.rglob("*.md")) - reached)


def test_pages_named_in_code_are_there() -> None:
    """Docstrings, comments, errors and examples name pages by their path."""
    places = [ROOT / name for name in ("fedrlvr", "benchmarks", "scripts", "examples", "tests")]
    files = [path for place in places for path in place.rglob("*") if path.suffix in (".py", ".toml", ".service", "")]
    for path in [*filter(Path.is_file, files), ROOT / "pyproject.toml", ROOT / "CONTRIBUTING.md"]:
        for name in re.findall(r"docs/[\w/-]+\.(?:md|svg|png)", path.read_text("utf-8", errors="replace")):
            written = name == "docs/results/gpu.md"  # by a bench that no machine has run yet
            coming = Path(name).name in AT_THE_MERGE
            assert written or coming or (ROOT / name).is_file(), f"{path.relative_to(ROOT)} names {name}"


def test_a_page_begins_with_what_to_do() -> None:
    """No page but the measurements' shows an interval before it has shown a command or a file."""
    for page in PAGES:
        text = page.read_text("utf-8")
        if page.parent.name == "measurements" or page.name == "measurements.md" or "±" not in text:
            continue
        first = re.search(r"^```(sh|toml|python|json)$", text, re.M)
        assert first is not None, page.name
        assert first.start() < text.index("±"), page.name


INTERVAL = re.compile(r"[+-]?(\d[\d,]*(?:\.\d+)?) ± (\d[\d,]*(?:\.\d+)?)")


def test_every_interval_was_measured() -> None:
    """A mean with its interval in README or docs stands in docs/results too, as a share or in per cent."""
    measured = set()
    for path in (DOCS / "results").glob("*.md"):
        for mean, half in INTERVAL.findall(path.read_text("utf-8")):
            measured.add((mean, half))
            if mean.startswith("0."):
                measured.add((f"{100 * float(mean):.1f}", f"{100 * float(half):.1f}"))
    missing = [
        f"{page.relative_to(ROOT)}: {interval[0]}"
        for page in PAGES
        for interval in INTERVAL.finditer(FENCE.sub("", page.read_text("utf-8")))
        if interval.groups() not in measured
    ]
    assert not missing


def test_each_promise_of_the_threat_model_names_a_test_that_exists() -> None:
    """A row for each promise, whose last cell is file::function."""
    section = (DOCS / "privacy.md").read_text("utf-8").partition("## Threat model\n")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")][1:]
    assert len(rows) >= 15
    for row in rows:
        *_, state, test = [cell.strip() for cell in row.strip("|").split("|")]
        file, _, name = test.strip("`").partition("::")
        assert state, row
        functions = {node.name for node in ast.parse((ROOT / file).read_text("utf-8")).body if hasattr(node, "name")}
        assert name.startswith("test_"), row
        assert name in functions, f"{file} has no {name}"


def test_the_page_of_reports_lists_every_number_that_leaves_a_client() -> None:
    text = (DOCS / "report.md").read_text("utf-8")
    families = ("audit_", "reward_", "seconds_")  # listed as `audit_*`, `reward_*`, `seconds_*`
    listed = set(re.findall(r"`([^`\n]+)`", text))
    assert {f"{family}*" for family in families} <= listed
    assert not [name for name in NUMBERS if not name.startswith(families) and name not in listed]


def test_the_example_of_a_row_is_what_a_grader_takes() -> None:
    rows = block("docs/data.md", "json", "heparin").text.splitlines()
    assert {json.loads(row).get("kind", "math") for row in rows} == {"math", "choice", "yes_no_maybe"}
