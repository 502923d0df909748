"""The public names, and every line of Python in the README."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import sos_deap

README = Path(__file__).parent.parent / "README.md"
PROMISED = {
    *("Chromosome", "Evaluator", "register", "batched_map", "statistics", "evolve"),
    *("cxFitnessWeighted", "mutSparsityFlipBit", "head_map", "masked", "prune", "load"),
}


def test_all_is_reality() -> None:
    assert set(sos_deap.__all__) >= PROMISED
    for name in sos_deap.__all__:
        thing = getattr(sos_deap, name)
        assert thing.__name__ == name
        assert thing.__module__.startswith("sos_deap.")
        assert thing.__doc__
    assert set(sos_deap.__all__) < set(dir(sos_deap))
    with pytest.raises(AttributeError, match="no attribute 'prun'"):
        _ = sos_deap.prun


def test_the_search_half_works_without_torch() -> None:
    code = (
        "import sys; from sos_deap import Chromosome, evolve, cxFitnessWeighted;"
        "assert Chromosome([1, 0]).sparsity == 0.5; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def blocks(language: str) -> list[str]:
    found = re.findall(rf"```{language}\n(.*?)```", README.read_text(), re.DOTALL)
    assert found, f"the README has no {language} block"
    return found


def test_the_readme_s_python_runs(tmp_path: Path, monkeypatch: Any) -> None:
    """As printed, but for fewer generations: the blocks run one after another, as one program."""
    monkeypatch.chdir(tmp_path)
    program = "\n".join(blocks("python"))
    short = re.sub(r"(ngen|generations)=100\b", r"\1=2", program)
    assert short != program
    names: dict[str, Any] = {}
    exec(compile(short, str(README), "exec"), names)  # our own README
    assert (tmp_path / "pruned" / "model.safetensors").is_file()
    assert 0 < names["best"][0].sparsity <= 0.31
    assert names["smaller"].num_parameters() < names["evaluate"].model.num_parameters()


def test_the_readme_s_flags_exist() -> None:
    from sos_deap.config import parse

    for line in "\n".join(blocks("sh")).replace("\\\n", " ").splitlines():
        command, *flags = line.split("#")[0].partition("sos_deap.run")[1:]
        if command:
            parse(flags[0].split())


def test_the_readme_s_other_commands_have_those_flags(capsys: Any) -> None:
    from sos_deap.__main__ import main

    seen = set()
    for line in "\n".join(blocks("sh")).replace("\\\n", " ").splitlines():
        if match := re.search(r"-m sos_deap (\w+) (.*)", line):
            command, flags = match.groups()
            with pytest.raises(SystemExit):
                main([command, "--help"])
            shown = capsys.readouterr().out
            assert all(flag in shown for flag in re.findall(r"--\w+", flags)), line
            seen.add(command)
    assert seen >= {"prune", "measure", "export"}
