"""The imports obey the layers of docs/design.md: downward only, each heavy library in one place, nothing unpickled.

Level 0 nouns, 1 pure, 2 effects, 3 the loop, 4 Ray actors, 5 entry points. Imports under `if TYPE_CHECKING:` are exempt: they do
not happen. A new top-level module or third-party library must be given its place here.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "next_ray"

NOUNS = {"", "config", "errors", "ports", "types"}
PURE = {
    "adapter",
    "aftermath",
    "alarms",
    "clock",
    "dashboard",
    "data.boxed",
    "data.formats",
    "data.jinja",
    "data.prompts",
    "data.splits",
    "data.stream",
    "data.template",
    "delta",
    "estimate",
    "evaluate",
    "extrapolate",
    "inspect.analysis",
    "inspect.backtest",
    "inspect.directions",
    "inspect.document",
    "inspect.energy",
    "inspect.errors",
    "inspect.groups",
    "inspect.linearity",
    "inspect.movement",
    "inspect.plane",
    "inspect.summaries",
    "inspect.verdict",
    "learn.advantages",
    "learn.batches",
    "learn.corrections",
    "learn.logprobs",
    "learn.kept_batch",
    "learn.losses",
    "learn.meter",
    "learn.objective",
    "learn.packing",
    "learn.resampling",
    "learn.schedule",
    "learn.sharing",
    "model_facts",
    "model_names",
    "planning",
    "precision",
    "predict",
    "progress",
    "rollout.probe",
    "rollout.spec",
    "secret_file",
    "settings",
    "signals",
    "stacks",
    "threads",
    "watch",
    "weights",
    "yaml_core",
}
STAGES = {"checkpoints", "data", "inspect", "learn", "models", "report", "reward", "rollout", "store"}
LOOP = {"feed", "jump", "loop", "nonfinite", "rollback", "serving", "stopping"}
ACTORS = {"actors"}
ENTRY_POINTS = {"commands", "course", "export", "integrations", "plan", "run", "serve", "warmstart"}

HOMES = {
    "aiohttp": {"store"},
    "botocore": {"store"},
    "deepspeed": {"learn"},
    "fastapi": {"rollout"},
    "fsspec": {"data", "store"},
    "huggingface_hub": {"data", "model_facts", "models"},
    "math_verify": {"reward"},
    "matplotlib": {"inspect.plots"},
    "mlflow": {"report"},
    "numpy": None,
    "peft": {"commands.verify", "integrations", "learn"},
    "psutil": {"actors", "reward", "rollout"},
    "pyarrow": {"data", "store"},
    "pydantic": {"config", "settings", "store"},
    "pydantic_core": {"settings"},
    "ray": {"actors", "run"},
    "reasoning_gym": {"data"},
    "rich": {"commands", "inspect.console", "report", "run"},
    "s3fs": {"data", "store"},
    "safetensors": {"adapter", "models", "store", "weights"},
    "shtab": {"commands"},
    "tenacity": {"store"},
    "tensorboard": {"report"},
    "tokenizers": {"models"},
    "torch": {
        "actors.library",
        "checkpoints",
        "commands.verify",
        "delta",
        "integrations",
        "learn",
        "models",
        "predict",
        "rollout",
        "threads",
        "weights",
    },
    "transformers": {"commands.verify", "data", "integrations", "learn", "models"},
    "vllm": {"rollout"},
    "wandb": {"report"},
    "yaml": {"settings", "yaml_core"},
}
"""Third-party libraries and the parts that may import them; None: every part but the nouns."""

ACROSS_STAGES = {
    ("checkpoints.bases", "models.folder"),  # a base is recognised by the fingerprint that runs record
    ("checkpoints.whole", "models.folder"),  # a checkpoint of full weights becomes a model folder
    ("checkpoints.whole", "store.checkpoints"),
    ("checkpoints.store_run", "models.resolve"),  # it is compared with the model that the run was trained from
    ("checkpoints.store_run", "models.folder"),  # objects of a bucket are kept where prepared models are
    ("checkpoints.store_run", "store.checkpoints"),  # our own runs are one of the formats
    ("reward.gym_answers", "data.gym"),  # a reasoning-gym answer is judged by the task that posed the problem
    ("reward.verifiers", "data.gym"),
}
"""Imports between two stages of level 2 that are meant."""

UNSAFE = {"pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}


@dataclass(frozen=True)
class Import:
    module: str
    line: int
    at_top: bool


def level(module: str) -> int:
    """The level of a module, named without the package."""
    head, _, last = module.partition(".")
    if "__main__" in (head, last):
        return 5
    if module in NOUNS or head in NOUNS:
        return 0
    if module in PURE or head in PURE:
        return 1
    for number, group in ((2, STAGES), (3, LOOP), (4, ACTORS), (5, ENTRY_POINTS)):
        if head in group:
            return number
    raise AssertionError(f"next_ray.{module} has no level: name it in {Path(__file__).name} (and in docs/design.md)")


def imports_of(source: str, known: set[str]) -> Iterator[Import]:
    """Every run-time import, full names; `from a import b` names the module `a.b` where that is one."""

    def visit(node: ast.AST, at_top: bool) -> Iterator[Import]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.orelse:
                yield from visit(child, at_top)
            return
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, at_top)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"line {node.lineno}: relative imports hide the layer"
            for alias in node.names:
                deeper = f"{node.module}.{alias.name}"
                yield Import(deeper if deeper in known else node.module, node.lineno, at_top)
        inside = at_top and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, inside)

    yield from visit(ast.parse(source), True)


def within(module: str, parts: set[str]) -> bool:
    return module.partition(".")[0] in parts or module in parts


def violations(module: str, source: str, known: set[str]) -> list[str]:
    """What a module (named without the package) does against the rules."""
    found: list[str] = []
    own = level(module)
    for imported in imports_of(source, known):
        top, _, rest = imported.module.partition(".")
        where = f"next_ray.{module}, line {imported.line}: imports {imported.module}"
        if top in UNSAFE:
            found.append(f"{where}, which can run code from data")
        elif top == PACKAGE:
            other = level(rest)
            same_stage = rest.partition(".")[0] == module.partition(".")[0]
            if other > own or (own == 3 and other == 2):
                found.append(f"{where}: level {own} must not know level {other}")
            elif own == other == 2 and not same_stage and (module, rest) not in ACROSS_STAGES:
                found.append(f"{where}: stages of level 2 do not know each other")
        elif top not in sys.stdlib_module_names:
            if own == 0 and top != "pydantic":
                found.append(f"{where}: nouns need the standard library and pydantic only")
            elif own == 3:
                found.append(f"{where}: the loop needs no library")
            elif top not in HOMES:
                found.append(f"{where}, a library without a home in {Path(__file__).name}")
            elif (homes := HOMES[top]) is not None and not within(module, homes):
                found.append(f"{where}, whose home is {', '.join(sorted(homes))}")
    return found


def unsafe_calls(source: str) -> list[int]:
    """Lines that call eval, exec, or torch.load without a literal `weights_only=True`."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [
        call.lineno
        for call in calls
        if (isinstance(call.func, ast.Name) and call.func.id in ("eval", "exec"))
        or (ast.unparse(call.func) == "torch.load" and not any(ast.unparse(word) == "weights_only=True" for word in call.keywords))
    ]


def loads_pickles(source: str) -> bool:
    """Whether torch.load is called at all: the importer of other trainers' checkpoints alone may."""
    return any(isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load" for node in ast.walk(ast.parse(source)))


def modules() -> dict[str, str]:
    """Module name without the package -> source."""
    sources = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
        sources[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text(encoding="utf-8")
    return sources


SOURCES = modules()
KNOWN = {f"{PACKAGE}.{name}".rstrip(".") for name in SOURCES}


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_a_module_keeps_to_its_layer(module: str) -> None:
    assert not violations(module, SOURCES[module], KNOWN)
    assert not unsafe_calls(SOURCES[module])
    assert not loads_pickles(SOURCES[module]) or within(module, {"checkpoints"})


def test_no_module_imports_itself_through_others() -> None:
    graph = {
        name: {
            found.module.removeprefix(f"{PACKAGE}").lstrip(".")
            for found in imports_of(source, KNOWN)
            if found.at_top and found.module.partition(".")[0] == PACKAGE
        }
        - {""}
        for name, source in SOURCES.items()
    }
    done: set[str] = set()

    def walk(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, "import cycle: " + " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for other in sorted(graph[name]):
                walk(other, (*path, name))
            done.add(name)

    for name in graph:
        walk(name, ())


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("learn.losses", "import ray", "home is actors, run"),
        ("store.tables", "def f():\n    from vllm import LLM", "line 2"),
        ("rollout.engine", "import deepspeed.comm", "home is learn"),
        ("types", "import numpy", "nouns"),
        ("types.rollout", "import numpy", "nouns"),
        ("config", "from next_ray.progress import Progress", "level 0 must not know level 1"),
        ("delta.factors", "from next_ray.store.storage import Storage", "level 1 must not know level 2"),
        ("loop", "from next_ray.report.report import Report", "level 3 must not know level 2"),
        ("loop", "import numpy", "no library"),
        ("report.report", "from next_ray.rollout.engine import VllmEngine", "do not know each other"),
        ("reward.pool", "from next_ray.actors import cluster", "level 2 must not know level 4"),
        ("store.records", "import pickle", "run code from data"),
        ("store.records", "import leftpad", "without a home"),
    ],
)
def test_the_rules_catch(module: str, source: str, complaint: str) -> None:
    (found,) = violations(module, source, KNOWN)
    assert complaint in found


def test_what_only_a_type_checker_imports_is_exempt() -> None:
    source = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import numpy\nelse:\n    import ray\n"
    assert [found.module for found in imports_of(source, KNOWN)] == ["typing", "ray"]


def test_unsafe_calls_are_seen_and_namesakes_are_not() -> None:
    assert unsafe_calls("model.eval()\nx = eval('1')\ntorch.load(f)\njson.load(f)\n") == [2, 3]
    assert unsafe_calls("torch.load(f, weights_only=True)\ntorch.load(f, weights_only=safe)\ntorch.load(f, weights_only=False)\n") == [2, 3]
    assert loads_pickles("torch.load(f, weights_only=True)") and not loads_pickles("json.load(f)")


def test_a_module_without_a_level_is_refused() -> None:
    with pytest.raises(AssertionError, match="has no level"):
        level("novelty.module")
