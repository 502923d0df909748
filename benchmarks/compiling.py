"""Does torch.compile pay for the evaluator on this CPU? Decoder layers compiled, the rest as it is.

    python -m benchmarks.compiling [--rounds 15]

The evaluator in bfloat16 on `builtin:tiny`, as in a search but for kept states: on the dense model,
whose layers all have one shape, and on sub-models with 25 % of their heads removed, whose layers
have many. Eager and compiled in turn on the same sub-models, in wall and in CPU seconds. Warm-up is
all that the first evaluations took beyond eager ones: compilation, with empty caches. A shape that
comes up later is compiled then, which the range of the steady times shows. Writes
results/compiling.json.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.evaluator import cpu_name
from benchmarks.main_job import spread
from sos_deap import Evaluator
from sos_deap.artifacts import versions
from sos_deap.files.atomic import write_json
from sos_deap.models.narrow import replaced
from sos_deap.models.sharing import blocks_of
from sos_deap.search.chromosome import random_genes

RESULTS = Path(__file__).parent / "results"
_WARM = 12  # evaluations before the steady ones: most shapes have come up by then


def compiled(evaluator: Evaluator) -> dict[Any, Callable[..., Any]]:
    """The forward passes of the model's blocks, each compiled by itself, for any shape."""
    model: Any = evaluator.model
    blocks = [model.get_submodule(path) for path in blocks_of(model, evaluator.head_map) or []]
    return {block: torch.compile(block.forward, dynamic=True) for block in blocks}


@contextmanager
def using(forwards: dict[Any, Callable[..., Any]]) -> Iterator[None]:
    """Blocks with those forward passes; none of them changed where the dict is empty."""
    with ExitStack() as stack:
        for block, forward in forwards.items():
            stack.enter_context(replaced(block, forward=forward))
        yield


def seconds(
    evaluator: Evaluator, genes: list[int], forwards: dict[Any, Callable[..., Any]]
) -> tuple[float, float, float]:
    """One evaluation, of which nothing is known: wall seconds, CPU seconds and the metric."""
    evaluator.clear()
    wall, cpu = time.perf_counter(), time.process_time()
    with using(forwards):
        metric = evaluator.metric(genes)
    return time.perf_counter() - wall, time.process_time() - cpu, metric


def measured(evaluator: Evaluator, share: float, rounds: int) -> dict[str, Any]:
    """Warm-up and steady gain on sub-models with a share of heads removed."""
    torch.compiler.reset()
    random.seed(0)
    forwards, length = compiled(evaluator), len(evaluator.head_map)
    eager, fast = list[tuple[float, float, float]](), list[tuple[float, float, float]]()
    for number in range(_WARM + rounds):
        genes = random_genes(length, share)
        for rows, which in ((eager, {}), (fast, forwards)):
            rows.append(seconds(evaluator, genes, which))
        print(f"{share} {number}: {eager[-1][0]:.3f} s eager, {fast[-1][0]:.3f} s compiled")
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
    """Measure, print, and write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    torch._dynamo.config.recompile_limit = 64  # a shape for every number of heads, not 8 of them
    torch._inductor.config.force_disable_caches = True
    evaluator = Evaluator.from_pretrained(device="cpu", heldout_samples=1, reuse_memory=0)
    evaluator.metric(random_genes(len(evaluator.head_map), 0.9))  # what is done once is done
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
    main()
