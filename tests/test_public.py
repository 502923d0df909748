"""The public names."""

from __future__ import annotations

import doctest
import subprocess
import sys
from types import ModuleType

import pytest

import sos_deap
from sos_deap.search import limits, named

PROMISED = {
    *("Chromosome", "Evaluator", "register", "batched_map", "statistics", "evolve", "Limits"),
    *("cxFitnessWeighted", "mutSparsityFlipBit", "head_map", "masked", "prune", "load"),
}


def test_all_lists_every_public_name() -> None:
    assert set(sos_deap.__all__) >= PROMISED
    for name in sos_deap.__all__:
        thing = getattr(sos_deap, name)
        assert thing.__name__ == name
        assert thing.__module__.startswith("sos_deap.")
        assert thing.__doc__
    assert set(sos_deap.__all__) < set(dir(sos_deap))
    with pytest.raises(AttributeError, match="no attribute 'prun'"):
        _ = sos_deap.prun


@pytest.mark.parametrize("module", [limits, named])
def test_examples_in_docstrings(module: ModuleType) -> None:
    failed, tried = doctest.testmod(module)
    assert tried and not failed


def test_the_search_half_works_without_torch() -> None:
    code = (
        "import sys; from sos_deap import Chromosome, evolve, cxFitnessWeighted;"
        "assert Chromosome([1, 0]).sparsity == 0.5; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
