"""The help of `run`, short and complete, and the time that it takes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from sos_deap.config import RunConfig
from sos_deap.models.costs import SPARSITIES
from sos_deap.models.devices import DTYPES
from sos_deap.models.sources import BUILTIN as BUILTIN_MODELS
from sos_deap.run import main
from sos_deap.search.algorithms import ALGORITHMS
from sos_deap.tasks.data.reading import BUILTIN as BUILTIN_DATA
from sos_deap.tasks.objectives import OBJECTIVES
from sos_deap.tasks.registry import TASKS
from sos_deap.tasks.settings import GROUPS, TaskSettings


def test_the_short_help_lists_the_common_flags(capsys: Any) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["-h"])
    assert stop.value.code == 0
    *lines, last = capsys.readouterr().out.splitlines()
    flags = re.findall(r"(?m)^  (--\w+)", "\n".join(lines))
    assert len(flags) == 18
    assert {"--model", "--task", "--algorithm", "--samples", "--seed"} <= set(flags)
    assert last == "These are the common flags; --help prints all."


def test_help_has_every_flag_in_its_group_with_its_default(capsys: Any) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    settings = [field for part in (RunConfig, TaskSettings) for field in fields(part)]
    sections = re.split(r"(?m)^(\w.*):\n", text)
    assert sections[3::2] == list(GROUPS.values())  # after usage and options
    for heading, content in zip(sections[3::2], sections[4::2], strict=True):
        flags = re.findall(r"(?m)^  --(\w+)", content)
        named = {field.name for field in settings if GROUPS[field.metadata["group"]] == heading}
        assert flags and set(flags) == named
    assert text.count("(default:") == len(settings)
    assert "None" not in text


def test_help_names_everything_that_can_be_chosen(capsys: Any) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = re.sub(r"-\n\s+", "-", capsys.readouterr().out)  # a line may break at a hyphen
    words = set(re.findall(r"[\w:-]+", text))
    for names in (ALGORITHMS, OBJECTIVES, TASKS, SPARSITIES, DTYPES, BUILTIN_MODELS, BUILTIN_DATA):
        assert set(names) <= words


def test_help_needs_no_torch_and_the_module_runs_as_a_program(tmp_path: Path) -> None:
    """Within two seconds on an idle machine; here the cause is tested, and a generous bound."""
    started = time.perf_counter()
    command = [sys.executable, "-X", "importtime", "-m", "sos_deap.run", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert time.perf_counter() - started < 10
    assert "--population_size" in done.stdout
    assert " torch\n" not in done.stderr
    bad = subprocess.run(
        [sys.executable, "-m", "sos_deap", "run", "--algorithm=x"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        check=False,
    )
    assert bad.returncode == 2
    assert bad.stderr.startswith("error: unknown algorithm 'x'")
    assert bad.stderr.count("\n") == 1
