"""int8 by torchao (weights only) and by bitsandbytes (LLM.int8): do masked batches hold, and time.

    pip install bitsandbytes
    python -m benchmarks.int8_libraries --output benchmarks/results/int8_libraries.json

A masked batch computes several sub-models in one forward pass. For each library, the largest
difference between the logits of four sub-models in such a batch and each computed alone is taken,
as a share of the largest logit, and the times of the passes of both models and of the model that
is not quantised, which alternate.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from sos_deap import gene_map, masked
from sos_deap.cli import Parser, quiet, run_with_exit_status
from sos_deap.files.atomic import write_json
from sos_deap.models.quantised import check_torchao, int8_config
from sos_deap.models.sources import source

SUB_MODELS, ROUNDS = 4, 5


def difference(model: Any, ids: torch.Tensor) -> float:
    """Return the largest difference of a sub-model in a batch from it alone.

    :param model: the model.
    :param ids: (rows, tokens).
    """
    genes = gene_map(model)
    draw = random.Random(0)
    chromosomes = [[int(draw.random() > 0.2) for _ in range(len(genes))] for _ in range(SUB_MODELS)]
    with torch.inference_mode():
        with masked(model, chromosomes):
            together = model(ids.repeat(SUB_MODELS, 1)).logits.split(len(ids))
        found = []
        for chromosome, one in zip(chromosomes, together, strict=True):
            with masked(model, [chromosome]):
                alone = model(ids).logits
            found.append(float((alone - one).abs().max() / alone.abs().max()))
    return max(found)


def times(models: dict[str, Any], ids: torch.Tensor) -> dict[str, float]:
    """Return the median seconds of a forward pass of each model, alternating."""
    found: dict[str, list[float]] = {name: [] for name in models}
    with torch.inference_mode():
        for _ in range(ROUNDS + 1):
            for name, model in models.items():
                started = time.perf_counter()
                model(ids)
                found[name].append(time.perf_counter() - started)
    return {name: statistics.median(each[1:]) for name, each in found.items()}


def main() -> None:
    """Measure, print, and write the results."""
    parser = Parser(description=__doc__)
    parser.add_argument("--model", default="builtin:tiny")
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    check_torchao("int8 weights")
    quiet()
    kinds = {
        "none": {},
        "torchao": {"quantization_config": int8_config()},
        "bitsandbytes": {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)},
    }
    models: dict[str, Any] = {
        name: AutoModelForCausalLM.from_pretrained(
            source(given.model), dtype=torch.float32, trust_remote_code=False, **how
        ).eval()
        for name, how in kinds.items()
    }
    torch.manual_seed(0)
    ids = torch.randint(0, models["none"].config.vocab_size, (2, 32))
    content = {
        "model": Path(given.model).name,
        "sub_models": SUB_MODELS,
        "tokens": ids.numel(),
        "difference": {name: difference(model, ids) for name, model in models.items()},
        "seconds": times(models, ids),
    }
    print(content)
    write_json(given.output, content)


if __name__ == "__main__":
    sys.exit(run_with_exit_status(main))
