from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.ngram import KneserNey
from sos_deap.cli import run_with_exit_status

ROOT = Path(__file__).parent.parent
SCRIPTS = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for folder in ("benchmarks", "benchmarks/standins", "runs")
    for path in sorted((ROOT / folder).glob("*.py"))
    if re.search(r"\.parse_args\(", path.read_text())
]


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_unknown_flag_of_a_script_is_one_line(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    main = importlib.import_module(name).main
    monkeypatch.setattr("sys.argv", [name, "--no_such_flag=1"])
    given = [["--no_such_flag=1"]] if name == "runs.heal" else []
    ended: list[int | None] = []
    status = run_with_exit_status(lambda: ended.append(main(*given)))
    assert 2 in (status, *ended)
    assert capsys.readouterr().err == "error: unknown flag '--no_such_flag': --help lists all\n"


def test_the_3_gram_model_is_a_distribution() -> None:
    rng = np.random.default_rng(0)
    stream = rng.choice(7, size=300, p=[0.4, 0.2, 0.15, 0.1, 0.1, 0.05, 0.0])
    model = KneserNey(stream, 7)
    every = np.arange(7)
    for a in range(7):
        for b in range(7):
            p = model.probability(np.full(7, a), np.full(7, b), every)
            assert p.sum() == pytest.approx(1.0)
            assert (p > 0).all()  # the token that never occurred too


def test_the_3_gram_model_by_hand() -> None:
    """Stream 0 1 2 0 1 2 0 1 0: trigrams 012 (2), 120 (2), 201 (2), 010 (1); D = 1/(1 + 6) = 1/7.

    Pairs that end a trigram: 12, 20, 01, 10, each after one token: D = 4/4 = 1. Tokens that end
    those: 2, 0 (twice), 1: n1 = 2, n2 = 1, D = 1/2, total 4.
    P(2) = (1 - 1/2)/4 + 1/2 * 3/4 * 1/3 = 1/4, P(2 | 1) = (1 - 1)/2 + 1 * 2/2 * 1/4 = 1/4,
    P(2 | 0 1) = (2 - 1/7)/3 + 1/7 * 2/3 * 1/4.
    """
    model = KneserNey(np.array([0, 1, 2, 0, 1, 2, 0, 1, 0]), 3)
    p = model.probability(np.array([0]), np.array([1]), np.array([2]))
    assert p[0] == pytest.approx((2 - 1 / 7) / 3 + 1 / 7 * 2 / 3 / 4)
