"""The house rules on the import graph, and what a cheap command may load."""

from __future__ import annotations

import ast
import functools
import inspect
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import networkx  # torch depends on it
import pytest

import fedrlvr
import fedrlvr.aggregation
import fedrlvr.coordination
import fedrlvr.rl
import fedrlvr.supervision
import fedrlvr.tasks

PACKAGE = Path(fedrlvr.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

PURE = ("rl", "supervision", "coordination", "aggregation")
STANDARD = {"__future__", "abc", "collections", "dataclasses", "enum", "functools", "hashlib", "importlib", "math"}
STANDARD |= {"random", "statistics", "typing", "unicodedata"}
"""What the pure packages take from the standard library: nothing that reads, writes, logs or waits. Of `random` the
generators, which callers seed (a test below); of `importlib` what finds a LoRA rule's file."""
BELOW = (
    "fedrlvr.adapter",
    "fedrlvr.errors",
    "fedrlvr.seeds",
    "fedrlvr.tasks.problem",
    *(f"fedrlvr.{name}" for name in PURE),
)
"""What of ours the pure packages may stand on."""
WITHOUT_IMPORT = {"open", "print", "input", "exec", "eval", "compile", "__import__"}


def part(path: Path) -> str:
    """The package or module of ours that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


@functools.cache
def imported(path: Path) -> list[str]:
    """Every module a file imports, anywhere in it."""
    modules: list[str] = []
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            assert node.module is not None
            modules.append(node.module)
    return modules


def named(path: Path) -> set[str]:
    return {node.id for node in ast.walk(parsed(path)) if isinstance(node, ast.Name)}


def importers(*modules: str) -> set[str]:
    """The parts of the house that import one of these third-party modules."""
    return {part(path) for path in FILES for name in imported(path) if name.split(".")[0] in modules}


def test_the_files_are_found() -> None:
    assert {*PURE, "policy", "client", "server", "wire", "tasks"} <= {part(path) for path in FILES}


def test_the_pure_core_takes_tensors_and_plain_values_only() -> None:
    """No Flower, no transformers, no files and no logging."""
    pure = [path for path in FILES if part(path) in {*PURE, "adapter"}]
    strangers = [
        f"{path}: {name}"
        for path in pure
        for name in imported(path)
        if not (name.startswith(BELOW) or name.split(".")[0] in STANDARD | {"torch", "numpy"})
    ]
    assert strangers == []
    assert [path for path in pure if named(path) & WITHOUT_IMPORT] == []


def test_chance_is_always_seeded() -> None:
    """Nothing of `random` but its generator, and that never without a seed."""
    for path in FILES:
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "random":
                assert node.attr == "Random", f"{path}:{node.lineno}"
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "random.Random":
                assert node.args, f"{path}:{node.lineno}"


def test_which_packages_know_flower() -> None:
    assert importers("flwr") == {"wire", "client", "server", "simulation", "deployment"}


def test_only_policy_knows_transformers() -> None:
    assert importers("transformers", "tokenizers") == {"policy"}


def test_nothing_of_ours_stands_on_test_dependencies() -> None:
    assert importers("trl", "peft", "pytest", "hypothesis") == set()


def test_no_pickle_and_no_eval_anywhere() -> None:
    assert importers("pickle", "marshal", "shelve", "cloudpickle", "dill") == set()
    assert [path for path in FILES if {"eval", "exec"} & named(path)] == []


def test_two_modules_touch_flowers_private_paths() -> None:
    public = ("flwr.app", "flwr.serverapp", "flwr.clientapp")
    private = {
        path.name
        for path in FILES
        for name in imported(path)
        if name.startswith("flwr") and not name.startswith(public)
    }
    assert private <= {"grid.py", "flower_private.py"}


def test_no_file_is_over_500_lines() -> None:
    assert [path.name for path in FILES if len(path.read_text("utf-8").splitlines()) > 500] == []


def import_cycles(root: Path) -> set[frozenset[str]]:
    """Modules of a package that import each other in a circle, by imports anywhere in them: at the top, for types alone
    or within a function."""
    paths = {".".join(path.relative_to(root.parent).with_suffix("").parts): path for path in root.rglob("*.py")}
    modules = {name.removesuffix(".__init__"): path for name, path in paths.items()}
    graph = networkx.DiGraph()
    for module, path in modules.items():
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Import):
                names = {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                whole = {f"{node.module}.{alias.name}" for alias in node.names}
                names = {name if name in modules else str(node.module) for name in whole}
            else:
                continue
            graph.add_edges_from((module, name) for name in names if name in modules)
    loops = {frozenset({module}) for module in networkx.nodes_with_selfloops(graph)}
    return loops | {frozenset(part) for part in networkx.strongly_connected_components(graph) if len(part) > 1}


def test_import_cycles_of_every_kind_are_found(tmp_path: Path) -> None:
    files = {
        "__init__": "",
        "a": "import p.b",
        "b": "def f():\n    from p import c",
        "c": "if TYPE_CHECKING:\n    from p.a import X",
        "d": "from p.a import X",
        "e": "from p.e import X",
        "q/__init__": "from p.q.f import X",
        "q/f": "from p.q import X",
    }
    for name, text in files.items():
        path = tmp_path / "p" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    circle, package = frozenset({"p.a", "p.b", "p.c"}), frozenset({"p.q", "p.q.f"})
    assert import_cycles(tmp_path / "p") == {circle, frozenset({"p.e"}), package}


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    assert import_cycles(PACKAGE) == set()


@pytest.mark.parametrize("name", ["benchmarks", "scripts"])
def test_no_import_cycle_outside_the_package(name: str) -> None:
    root = Path(__file__).parents[1] / name
    assert list(root.rglob("*.py"))
    assert import_cycles(root) == set()


def test_no_class_name_stands_for_two_things() -> None:
    names = [node.name for path in FILES for node in ast.walk(parsed(path)) if isinstance(node, ast.ClassDef)]
    assert {name for name in names if names.count(name) > 1} == set()


@pytest.mark.parametrize(
    "module",
    [fedrlvr, fedrlvr.rl, fedrlvr.tasks, fedrlvr.aggregation, fedrlvr.coordination, fedrlvr.supervision],
)
def test_every_public_name_is_there_and_documented(module: object) -> None:
    for name in module.__all__:  # type: ignore[attr-defined]
        value = getattr(module, name)
        assert not (inspect.isfunction(value) or inspect.isclass(value)) or value.__doc__, name


# What a cheap command may load.

HEAVY = {"torch", "transformers", "tokenizers", "flwr", "numpy", "sympy", "math_verify", "datasets", "matplotlib"}


def loaded_by(code: str) -> tuple[set[str], str]:
    """Heavy modules loaded in a fresh process that runs `code`, and what it wrote to stderr."""
    program = f"import json, sys\n{code}\nprint(json.dumps(sorted({HEAVY!r} & set(sys.modules))))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1])), done.stderr


def command(*arguments: str) -> str:
    """Code that runs the command line, and fails if it does not end with an exit code."""
    return (
        f"sys.argv = ['fedrlvr', *{arguments!r}]\n"
        "from fedrlvr.cli.main import main\n"
        "try:\n    main()\n    sys.exit('main returned')\n"
        "except SystemExit as end:\n    code = end.code or 0\n    assert isinstance(code, int), code\n"
        "print(code)"
    )


@pytest.mark.parametrize(
    "module",
    [
        "fedrlvr",
        "fedrlvr.aggregation",
        "fedrlvr.config",
        "fedrlvr.tasks",
        "fedrlvr.rl",
        "fedrlvr.cli.main",
        "fedrlvr.zoo",
    ],
)
def test_importing_is_light(module: str) -> None:
    assert loaded_by(f"import {module}")[0] == set()


def test_help_is_light() -> None:
    assert loaded_by(command("--help") + "\nassert code == 0")[0] == set()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("run", "--set", "train.ronuds=3"), "train.rounds"),
        (("run", "no-such-file.toml"), "cannot be read: No such file"),
        (("run", "--set", "sampling.group_size=1"), "sampling.group_size"),
        (("run", "--set", "aggregation.type=fedavg"), "aggregation.type: unknown rule 'fedavg'; known: fedit, ffa,"),
        (("run", "--set", "aggregation.type=flora", "--set", "aggregation.robust=median"), "type = fedit, ffa, rolora"),
        (("sweep", "--vary", "train.ronuds=1,2"), "train.rounds"),
        (("sweep", "--vary", "train.rounds=1,0"), "train.rounds"),
    ],
)
def test_a_mistake_in_the_config_is_answered_without_loading_anything_heavy(
    arguments: tuple[str, ...], text: str
) -> None:
    heavy, errors = loaded_by(command(*arguments) + "\nassert code != 0")
    assert heavy == set()
    assert text in errors
    assert "Traceback" not in errors


def test_the_version_is_stated_alike_in_the_package_and_in_its_metadata() -> None:
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["version"] == fedrlvr.__version__
