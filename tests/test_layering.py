"""The rules of the package's imports, read from the source."""

from __future__ import annotations

import ast
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import sos_deap
from sos_deap.models.saving import COPIED

ROOT = Path(sos_deap.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
PICKLERS = {"pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}

#: Files that read the configuration of a run.
CONFIGURED = {"run.py", "plan.py", "config.py"}

#: What each package must not import, late imports included.
FORBIDDEN = {
    "search": ["torch", "transformers", "models", "tasks", "evaluation", "engines", "export"],
    "models": ["deap", "search", "tasks", "evaluation", "engines", "export"],
    "tasks": ["deap", "search", "evaluation", "engines", "export"],
    "export": ["deap", "search", "tasks", "evaluation", "engines"],
    "evaluation": ["deap", "engines", "export", "report", "toolbox", "artifacts"],
    "engines": ["deap", "export", "report", "toolbox", "artifacts"],
    "files": ["deap", "torch", "transformers", "search", "models", "tasks", "evaluation", "report"],
    "report": ["engines", "export", "toolbox", "artifacts"],
}


def imports(path: Path, type_checking: bool = True) -> set[str]:
    """Every module that a file imports, late imports included, by full name."""
    tree = ast.parse(path.read_text())
    if not type_checking:
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
                node.body = []
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            module = str(node.module)
            names = {f"{module}.{alias.name}" for alias in node.names}
            found |= {module, *(name for name in names if name in MODULES)}
    return found


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path) for path in FILES}


def reaches(path: Path, *packages: str) -> set[str]:
    return {m for m in imports(path) if any(m == p or m.startswith(f"{p}.") for p in packages)}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    for name in FORBIDDEN.get(package, []):
        assert not reaches(path, name, f"sos_deap.{name}"), f"{package}/ must not import {name}"
    if path.name not in CONFIGURED:
        assert not reaches(path, "sos_deap.run", "sos_deap.plan", "sos_deap.config")
        assert "RunConfig" not in path.read_text()
    assert not reaches(path, *PICKLERS)
    calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
    names = {call.func.id for call in calls if isinstance(call.func, ast.Name)}
    assert not names & {"eval", "exec", "compile", "__import__"}


def test_no_imports_in_a_circle() -> None:
    graph = {module_of(path): imports(path, type_checking=False) & MODULES for path in FILES}
    order = list(TopologicalSorter(graph).static_order())
    assert order.index("sos_deap.evaluation.evaluator") < order.index("sos_deap.engines.attach")
    graph["sos_deap.evaluation.evaluator"].add("sos_deap.engines.attach")
    with pytest.raises(CycleError):  # so that the check can fail
        list(TopologicalSorter(graph).static_order())


def test_copied_code_needs_torch_and_transformers_only() -> None:
    paths = [ROOT / "models" / f"{name}.py" for name in COPIED]
    allowed = {*sys.stdlib_module_names, "torch", "transformers"}
    for path in paths:
        others = {name for name in imports(path) if name.partition(".")[0] not in allowed}
        assert others <= set(map(module_of, paths)), path.name
    defined = [
        node.name
        for path in paths
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    ]
    assert len(defined) == len(set(defined))


def test_every_package_is_checked() -> None:
    packages = {path.name for path in ROOT.iterdir() if (path / "__init__.py").exists()}
    assert packages == set(FORBIDDEN)
    assert reaches(ROOT / "evaluation/evaluator.py", "torch", "sos_deap.models")
    assert reaches(ROOT / "models/prune.py", "torch")


def lines_of(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring."""
    text = ast.get_docstring(node, clean=False)
    docstring = 0 if text is None else (node.body[0].end_lineno or 0) - node.body[0].lineno + 1
    return (node.end_lineno or 0) - node.lineno + 1 - docstring


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_are_short(path: Path) -> None:
    source = path.read_text()
    assert source.count("\n") <= 300
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert lines_of(node) <= 50, node.name
