"""Train a pruned causal language model to reproduce the dense one; save it in the same format.

    python -m runs.heal runs/NAME/pruned --output healed
    python -m runs.heal PRUNED --model DENSE --dataset FILE --method lora --steps 500 --output DIR

The loss is the divergence of the next-token distributions from the dense model's (distillation;
Hinton et al., 2015) on the calibration part of a data set; the held-out part is only measured on.
It needs accelerate and peft: pip install 'sos_deap[heal]'.
"""

from __future__ import annotations

import sys
import tempfile
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.pytorch_utils import Conv1D

from sos_deap import Evaluator, load
from sos_deap.cli import Parser, quiet, run_with_exit_status
from sos_deap.errors import InputError
from sos_deap.files.atomic import whole_folder, write_json

#: Learning rates by method, unless one is given.
RATES = {"full": 2e-4, "lora": 2e-3}


def divergence(teacher: Any, outputs: Any, ids: Any, **_: Any) -> Any:
    """Return the Kullback-Leibler divergence per token of outputs from a teacher's, in nats."""
    with torch.no_grad():
        wanted = teacher(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)
    found = outputs.logits.float().log_softmax(-1)
    return nn.functional.kl_div(
        found.flatten(0, 1), wanted.flatten(0, 1), reduction="batchmean", log_target=True
    )


def heal(model: Any, evaluator: Any, method: str, rank: int, **settings: Any) -> Any:
    """Train a pruned model, in float32, on an evaluator's calibration text, and return it.

    :param method: ``"full"`` trains all weights; ``"lora"`` trains factors of low rank (Hu et al.,
        2021) in parallel to every projection of the layers, which are then added to the weights.
    :param rank: rank of the factors.
    :param settings: fields of :class:`transformers.TrainingArguments`.
    """
    student = model
    if method == "lora":
        from peft import LoraConfig, get_peft_model  # noqa: PLC0415 - optional

        factors = LoraConfig(r=rank, lora_alpha=rank, target_modules=projections(model))
        student = get_peft_model(model, factors)
    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            scratch,
            **settings,
            lr_scheduler_type="cosine",
            warmup_steps=0.05,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cache=model.config.use_cache,  # the trainer changes the config to this
            use_cpu=evaluator.model.device.type == "cpu",
        )
        rows: Any = [
            {"input_ids": row, "labels": row} for row in evaluator.task.sequences.input_ids
        ]
        loss = partial(divergence, evaluator.model)
        Trainer(student, arguments, train_dataset=rows, compute_loss_func=loss).train()
    return (student.merge_and_unload() if method == "lora" else student).eval()


def projections(model: Any) -> list[str]:
    """Return the paths of the projections of the layers, but for those without units."""
    head, modules = model.get_output_embeddings(), model.named_modules()
    linear = [one for one in modules if isinstance(one[1], nn.Linear | Conv1D)]
    return [name for name, module in linear if module is not head and module.weight.numel()]


def main(arguments: list[str]) -> None:
    """Train, save and measure."""
    flags = parsed(arguments)
    if find_spec("accelerate") is None or find_spec("peft") is None:
        raise InputError("this needs accelerate and peft: pip install 'sos_deap[heal]'")
    if flags.output.exists():
        raise InputError(f"{flags.output} exists: give another --output")
    if min(flags.rank, flags.steps, flags.batch_size) < 1:
        raise InputError("rank, steps and batch_size must be at least 1")
    quiet()
    pruned = load(flags.pruned)
    data = {name: vars(flags)[name] for name in ("dataset", "heldout_samples", "seqlen", "seed")}
    evaluator: Any = Evaluator.from_pretrained(
        flags.model, task="perplexity", dtype="float32", samples=10**6, **data
    )

    def perplexity(model: Any) -> float:
        on_device = model.float().to(evaluator.model.device)
        return float(evaluator.metrics_of(on_device, evaluator.heldout)["perplexity"])

    stored = pruned.dtype
    found = {"dense": perplexity(evaluator.model), "pruned": perplexity(pruned)}
    started = time.perf_counter()
    settings = {
        "max_steps": flags.steps,
        "per_device_train_batch_size": flags.batch_size,
        "learning_rate": RATES[flags.method] if flags.rate is None else flags.rate,
        "logging_steps": max(1, flags.steps // 10),
        "seed": flags.seed,
    }
    healed = heal(pruned, evaluator, flags.method, flags.rank, **settings)
    seconds = time.perf_counter() - started
    with whole_folder(flags.output) as folder:
        healed.to(stored).save_pretrained(folder)
        evaluator.tokenizer.save_pretrained(folder)
    found["healed"] = perplexity(load(flags.output))
    print(", ".join(f"{name} {value:.4g}" for name, value in found.items()), f"in {seconds:.0f} s")
    if flags.json is not None:
        used = data | settings | {"method": flags.method, "rank": flags.rank}
        write_json(flags.json, {"settings": used, "seconds": seconds, "perplexity": found})


def parsed(arguments: list[str]) -> Any:
    """Parse the flags."""
    parser = Parser(prog="python -m runs.heal", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("pruned", help="folder of the pruned model")
    add("--model", default="builtin:tiny", help="the dense model (builtin:tiny)")
    add("--dataset", default="builtin:pydoc", help="as for sos_deap.run (builtin:pydoc)")
    add("--method", choices=RATES, default="lora", help="lora, or full: all weights (lora)")
    add("--rank", type=int, default=16, help="rank of the factors of lora (16)")
    add("--steps", type=int, default=500, help="training steps (500)")
    add("--batch_size", type=int, default=8, help="sequences per step (8)")
    add("--rate", type=float, help="highest learning rate (2e-3 for lora, 2e-4 for full)")
    add("--seqlen", type=int, default=128, help="tokens per sequence (128)")
    add("--heldout_samples", type=int, default=256, help="sequences to measure on (256)")
    add("--seed", type=int, default=0, help="seed of the order of the sequences (0)")
    add("--output", type=Path, required=True, help="new folder for the trained model")
    add("--json", type=Path, help="file for the numbers")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(run_with_exit_status(lambda: main(sys.argv[1:])))
