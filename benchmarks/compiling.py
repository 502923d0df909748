"""Measure what torch.compile saves in evaluations on a CPU; write results/compiling.json.

    python -m benchmarks.compiling [--rounds 15]

Only the decoder layers are compiled. The evaluator runs in bfloat16 on `builtin:tiny`, as in a
search but without cached hidden states: on the dense model, whose layers have one shape, and on
sub-models with 25 % of the heads removed, whose layers have many shapes. Eager and compiled
evaluations alternate on the same sub-models, in wall-clock and in CPU seconds. The warm-up is the
additional time of the first compiled evaluations, with empty compilation caches. A shape that first
occurs later is compiled then, which shows in the range of the steady times.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.evaluator import cpu_name
from benchmarks.main_job import spread
from sos_deap import Evaluator
from sos_deap.cards import versions
from sos_deap.cli import Parser, run_with_exit_status
from sos_deap.files.atomic import write_json
from sos_deap.models.sharing import blocks_of
from sos_deap.models.temporary import replaced
from sos_deap.search.chromosome import random_genes

RESULTS = Path(__file__).parent / "results"
_WARM = 12  # evaluations before the steady ones, in which most shapes occur


def compiled(evaluator: Evaluator) -> dict[Any, Callable[..., Any]]:
    """Compile the forward pass of each decoder layer separately, for dynamic shapes."""
    model: Any = evaluator.model
    blocks = [model.get_submodule(path) for path in blocks_of(model, evaluator.gene_map) or []]
    return {block: torch.compile(block.forward, dynamic=True) for block in blocks}


@contextmanager
def using(forwards: dict[Any, Callable[..., Any]]) -> Iterator[None]:
    """Replace the forward passes of these blocks; an empty dict changes nothing."""
    with ExitStack() as stack:
        for block, forward in forwards.items():
            stack.enter_context(replaced(block, forward=forward))
        yield


def seconds(
    evaluator: Evaluator, genes: list[int], forwards: dict[Any, Callable[..., Any]]
) -> tuple[float, float, float]:
    """Evaluate with an empty cache; return wall-clock seconds, CPU seconds and the metric."""
    evaluator.clear()
    wall, cpu = time.perf_counter(), time.process_time()
    with using(forwards):
        metric = evaluator.metric(genes)
    return time.perf_counter() - wall, time.process_time() - cpu, metric


def measured(evaluator: Evaluator, share: float, rounds: int) -> dict[str, Any]:
    """Measure warm-up and steady gain on sub-models with this proportion of heads removed."""
    torch.compiler.reset()
    random.seed(0)
    forwards, length = compiled(evaluator), len(evaluator.gene_map)
    eager, fast = list[tuple[float, float, float]](), list[tuple[float, float, float]]()
    for number in range(_WARM + rounds):
        genes = random_genes(length, share)
        for rows, replaced_forwards in ((eager, {}), (fast, forwards)):
            rows.append(seconds(evaluator, genes, replaced_forwards))
        print(
            f"{share:.0%} removed, round {number}: {eager[-1][0]:.3f} s eager, "
            f"{fast[-1][0]:.3f} s compiled"
        )
    pairs = list(zip(eager, fast, strict=True))
    return {
        "warm_up_seconds": sum(b[0] - a[0] for a, b in pairs[:_WARM]),
        "seconds_eager": spread([a[0] for a in eager[_WARM:]]),
        "seconds_compiled": spread([b[0] for b in fast[_WARM:]]),
        "eager_over_compiled": spread([a[0] / b[0] for a, b in pairs[_WARM:]]),
        "eager_over_compiled_cpu": spread([a[1] / b[1] for a, b in pairs[_WARM:]]),
        "median_relative_difference": statistics.median(abs(b[2] / a[2] - 1) for a, b in pairs),
    }


def main() -> None:
    """Measure, write the JSON file and print its content."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="evaluations after the warm-up (15)")
    rounds = parser.parse_args().rounds
    torch._dynamo.config.recompile_limit = 64  # one per number of heads; the default is 8
    torch._inductor.config.force_disable_caches = True
    evaluator = Evaluator.from_pretrained(device="cpu", heldout_samples=1, reuse_memory=0)
    evaluator.metric(random_genes(len(evaluator.gene_map), 0.9))  # one-time work
    found: dict[str, Any] = {
        "dtype": str(evaluator.model.dtype),
        "dense": measured(evaluator, 0.0, rounds),
        "25 % removed": measured(evaluator, 0.25, rounds),
        "threads": torch.get_num_threads(),
        "cpu": cpu_name(),
        "versions": versions(),
    }
    write_json(RESULTS / "compiling.json", found)
    print(found)


if __name__ == "__main__":
    sys.exit(run_with_exit_status(main))
