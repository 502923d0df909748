"""The walls of the house, read from the imports."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import sos_deap

ROOT = Path(sos_deap.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
PICKLERS = {"pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}


def imports(path: Path) -> set[str]:
    """Every module a file imports, late imports too, by full name."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            found.add(str(node.module))
    return found


def reaches(path: Path, *packages: str) -> set[str]:
    return {m for m in imports(path) if any(m == p or m.startswith(f"{p}.") for p in packages)}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_walls(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    if room == "search":
        assert not reaches(path, "torch", "transformers", "sos_deap.models", "sos_deap.tasks")
        assert not reaches(path, "sos_deap.evaluation.evaluator", "sos_deap.run")
    if room in ("models", "tasks"):
        assert not reaches(
            path, "deap", "sos_deap.search", "sos_deap.evaluation.evaluator", "sos_deap.run"
        )
    if path.name != "run.py":
        assert not reaches(path, "sos_deap.run"), "only run.py sees the configuration"
        assert not reaches(path, "sos_deap.config"), "only run.py sees the configuration"
        assert path.name == "config.py" or "RunConfig" not in path.read_text()
    assert not reaches(path, *PICKLERS)
    calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
    names = {call.func.id for call in calls if isinstance(call.func, ast.Name)}
    assert not names & {"eval", "exec", "compile", "__import__"}


def test_the_walls_are_looked_at() -> None:
    rooms = {path.relative_to(ROOT).parts[0] for path in FILES}
    assert {"search", "models", "tasks", "evaluation", "run.py"} <= rooms
    assert reaches(ROOT / "evaluation/evaluator.py", "torch", "sos_deap.search")
