"""Train the embedded model `builtin:tiny` offline, on documentation installed on this machine.

    python benchmarks/standins/train_tiny.py   # writes sos_deap/builtin/tiny; 80 minutes, 2 cores

The model is a Llama with 12 layers x 12 heads (144 genes). It is trained on the train split of the
standard library and the docstrings of numpy, torch, transformers and datasets, without
near-duplicates of the calibration and test splits. The result is deterministic for one seed, thread
count, processor and set of versions: the shipped weights were made on 2 threads with Python 3.11.7
and constraints.txt. The training log is written to benchmarks/standins/train_tiny.csv;
benchmarks/builtin_tiny.py measures the result.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sos_deap.tasks.data import pydoc

PACKAGES = ("numpy", "torch", "transformers", "datasets")
END = "<|end|>"
HOME = Path(__file__).resolve().parents[2] / "sos_deap" / "builtin" / "tiny"
LOG = Path(__file__).resolve().parent / "train_tiny.csv"


def training_documents() -> list[pydoc.Document]:
    """Return the standard library's train split and the packages' docstrings, deduplicated."""
    filter_ = pydoc.NearDuplicates()
    documents = [d for split in pydoc.SPLITS for d in pydoc.pydoc_documents(split)]
    for text in (text for document in documents for text in document.texts):
        filter_.is_new(text)
    found = list(pydoc.pydoc_documents("train"))
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        assert spec is not None, f"{package} is not installed"
        assert spec.origin is not None
        raw = (
            (n, pydoc.docstrings(p)) for n, p in pydoc.modules(Path(spec.origin).parent, package)
        )
        found += pydoc.deduplicated(raw, filter_)
    return found


def train_tokenizer(documents: list[pydoc.Document], vocabulary: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer with one special token, which ends every document."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=16,  # no tokens for long rows of = or blanks
        show_progress=False,
    )
    tokenizer.train_from_iterator((d.text for d in documents), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=END
    )


def token_stream(
    tokenizer: PreTrainedTokenizerFast, documents: list[pydoc.Document]
) -> torch.Tensor:
    """Return the tokens of all documents in one row, with an end token after each document."""
    ids = tokenizer([d.text + END for d in documents], verbose=False)["input_ids"]
    return torch.tensor([token for row in ids for token in row])


def batches(
    stream: torch.Tensor, rows: int, seqlen: int, generator: torch.Generator
) -> Iterator[torch.Tensor]:
    """Yield batches (rows, seqlen) endlessly; each epoch cuts the stream from a random offset."""
    while True:
        offset = int(torch.randint(seqlen, (1,), generator=generator))
        count = (len(stream) - offset) // seqlen
        windows = stream[offset : offset + count * seqlen].view(count, seqlen)
        order = torch.randperm(count, generator=generator)
        yield from (windows[i] for i in order.split(rows) if len(i) == rows)


def learning_rate(step: int, steps: int, warmup: int = 50) -> float:
    """Return the factor of the peak rate at a step: linear up, constant, linear to zero."""
    return min((step + 1) / warmup, 1.0, 2.0 * (steps - step) / steps)


def perplexity(model: LlamaForCausalLM, stream: torch.Tensor, seqlen: int, limit: int) -> float:
    """Return the perplexity over the first `limit` sequences of a token stream."""
    windows = stream[: len(stream) // seqlen * seqlen].view(-1, seqlen)[:limit]
    with torch.inference_mode():
        losses = [float(next_token_loss(model, batch)) * len(batch) for batch in windows.split(32)]
    return math.exp(sum(losses) / len(windows))


def next_token_loss(model: LlamaForCausalLM, batch: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy of the next token in nats; `batch` is (rows, seqlen)."""
    logits = model(batch, use_cache=False).logits[:, :-1].flatten(0, 1)
    return torch.nn.functional.cross_entropy(logits, batch[:, 1:].flatten())


def main() -> None:
    """Train, write the log and save the weights in bfloat16."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=2500, help="training steps (2500)")
    parser.add_argument("--rows", type=int, default=32, help="sequences per batch (32)")
    parser.add_argument("--seqlen", type=int, default=128, help="tokens per sequence (128)")
    parser.add_argument("--vocabulary", type=int, default=2048, help="tokens (2048)")
    parser.add_argument("--seed", type=int, default=0, help="seed of PyTorch (0)")
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch (2)")
    parser.add_argument("--output_dir", type=Path, default=HOME, help="folder for the model")
    parser.add_argument("--log", type=Path, default=LOG, help="CSV file for the training log")
    arguments = parser.parse_args()

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(arguments.threads)
    documents = training_documents()
    tokenizer = train_tokenizer(documents, arguments.vocabulary)
    stream = token_stream(tokenizer, documents)
    calibration = token_stream(tokenizer, list(pydoc.pydoc_documents("calibration")))
    print(
        f"{len(documents)} documents, {len(stream)} tokens; calibration {len(calibration)}",
        flush=True,
    )

    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=arguments.vocabulary,
            hidden_size=144,
            intermediate_size=288,
            num_hidden_layers=12,
            num_attention_heads=12,
            num_key_value_heads=12,
            max_position_embeddings=arguments.seqlen,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=0,
        )
    )
    tokenizer.model_max_length = arguments.seqlen
    inner = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    outer = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(inner, lr=0.02, momentum=0.95, weight_decay=0.02),
        torch.optim.AdamW(outer, lr=0.004, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    peaks = [o.param_groups[0]["lr"] for o in optimizers]
    source = batches(
        stream, arguments.rows, arguments.seqlen, torch.Generator().manual_seed(arguments.seed)
    )
    start, recent = time.perf_counter(), 0.0
    with arguments.log.open("w", newline="") as file:
        log = csv.writer(file, lineterminator="\n")
        log.writerow(["step", "tokens", "train_loss", "calibration_perplexity", "seconds"])
        for step in range(arguments.steps):
            for optimizer, peak in zip(optimizers, peaks, strict=True):
                optimizer.param_groups[0]["lr"] = peak * learning_rate(step, arguments.steps)
            loss = next_token_loss(model, next(source))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            recent = loss.item() if step == 0 else 0.95 * recent + 0.05 * loss.item()
            if (step + 1) % 100 == 0 or step + 1 == arguments.steps:
                held = perplexity(model, calibration, arguments.seqlen, 128)
                tokens = (step + 1) * arguments.rows * arguments.seqlen
                log.writerow(
                    [
                        step + 1,
                        tokens,
                        f"{recent:.4f}",
                        f"{held:.3f}",
                        f"{time.perf_counter() - start:.0f}",
                    ]
                )
                file.flush()
                save(model, tokenizer, arguments.output_dir)
    print(f"saved to {arguments.output_dir}")


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the weights in bfloat16 and the tokenizer."""
    copy: Any = LlamaForCausalLM(model.config)
    copy.load_state_dict(model.state_dict())
    copy.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    main()
