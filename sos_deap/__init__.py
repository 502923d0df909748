"""Prune transformer models with genetic algorithms: a plug-in for DEAP.

    chromosome -> masked forward -> metric -> fitness -> DEAP -> next chromosomes
     (search/)      (models/)      (tasks/)   (tasks/)  (search/)
                       evaluation/

With the best chromosome, :func:`prune` then cuts heads and channels out of the weights.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sos_deap.engines.attach import open_engine as open_engine
    from sos_deap.errors import InputError as InputError
    from sos_deap.evaluation.batched_map import batched_map as batched_map
    from sos_deap.evaluation.evaluator import Evaluator as Evaluator
    from sos_deap.models.find_genes import gene_map as gene_map
    from sos_deap.models.find_genes import head_map as head_map
    from sos_deap.models.loading import load as load
    from sos_deap.models.masking import masked as masked
    from sos_deap.models.prune import prune as prune
    from sos_deap.models.refit import refit as refit
    from sos_deap.search.chromosome import Chromosome as Chromosome
    from sos_deap.search.drive import evolve as evolve
    from sos_deap.search.limits import Limits as Limits
    from sos_deap.search.operators import cxFitnessWeighted as cxFitnessWeighted
    from sos_deap.search.operators import cxFitnessWeightedPaper as cxFitnessWeightedPaper
    from sos_deap.search.operators import mutSparsityFlipBit as mutSparsityFlipBit
    from sos_deap.search.operators import mutSwap as mutSwap
    from sos_deap.search.repairs import limit_sparsity as limit_sparsity
    from sos_deap.search.repairs import uniform_layers as uniform_layers
    from sos_deap.search.selection import selNSGA3 as selNSGA3
    from sos_deap.search.selection import selRoulette as selRoulette
    from sos_deap.search.selection import (
        selStochasticUniversalSampling as selStochasticUniversalSampling,
    )
    from sos_deap.search.statistics import statistics as statistics
    from sos_deap.toolbox import register as register

__version__ = "0.1.0"

# Public name -> the module that defines it. Imported on first use, so that `--help` and
# `sos_deap.search` do not wait for torch, which takes seconds.
_MODULES = {
    "Chromosome": "search.chromosome",
    "Evaluator": "evaluation.evaluator",
    "InputError": "errors",
    "Limits": "search.limits",
    "batched_map": "evaluation.batched_map",
    "cxFitnessWeighted": "search.operators",
    "cxFitnessWeightedPaper": "search.operators",
    "evolve": "search.drive",
    "gene_map": "models.find_genes",
    "head_map": "models.find_genes",
    "history": "report.history",
    "limit_sparsity": "search.repairs",
    "load": "models.loading",
    "masked": "models.masking",
    "mutSparsityFlipBit": "search.operators",
    "mutSwap": "search.operators",
    "open_engine": "engines.attach",
    "prune": "models.prune",
    "refit": "models.refit",
    "register": "toolbox",
    "selNSGA3": "search.selection",
    "selRoulette": "search.selection",
    "selStochasticUniversalSampling": "search.selection",
    "statistics": "search.statistics",
    "uniform_layers": "search.repairs",
}

__all__ = sorted(_MODULES)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
