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
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

# A script that is run by its path imports from its own folder only.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.standins import training
from sos_deap.cli import Parser, run_with_exit_status
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
    tokenizer = training.train_byte_level_bpe(
        (document.text for document in documents),
        vocabulary,
        [END],
        max_token_length=16,  # no tokens for long rows of = or blanks
        leading_blank=False,
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END, eos_token=END, pad_token=END
    )


def build(vocabulary: int, seqlen: int) -> LlamaForCausalLM:
    """Return the untrained model."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=144,
            intermediate_size=288,
            num_hidden_layers=12,
            num_attention_heads=12,
            num_key_value_heads=12,
            max_position_embeddings=seqlen,
            tie_word_embeddings=True,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=0,
        )
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


def train(flags: argparse.Namespace) -> None:
    """Train, write the log and save the weights in bfloat16."""
    training.prepare(flags.seed, flags.threads)
    documents = training_documents()
    tokenizer = train_tokenizer(documents, flags.vocabulary)
    stream = token_stream(tokenizer, documents)
    calibration = token_stream(tokenizer, list(pydoc.pydoc_documents("calibration")))
    print(
        f"{len(documents)} documents, {len(stream)} tokens; calibration {len(calibration)}",
        flush=True,
    )

    model = build(flags.vocabulary, flags.seqlen)
    tokenizer.model_max_length = flags.seqlen
    fit(model, tokenizer, stream, calibration, flags)
    print(f"saved to {flags.output_dir}")


def fit(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    stream: torch.Tensor,
    calibration: torch.Tensor,
    flags: argparse.Namespace,
) -> None:
    """Train a model on a token stream; log and save it every 100 steps.

    :param calibration: token stream whose perplexity is logged.
    """
    optimizers = training.Optimizers(
        model, training.is_matrix_of_a_layer, muon=0.02, adamw=0.004, beta2=0.95, decay=0.0
    )
    source = batches(stream, flags.rows, flags.seqlen, torch.Generator().manual_seed(flags.seed))
    start, recent = time.perf_counter(), 0.0
    with flags.log.open("w", newline="") as file:
        log = csv.writer(file, lineterminator="\n")
        log.writerow(["step", "tokens", "train_loss", "calibration_perplexity", "seconds"])
        for step in range(flags.steps):
            loss = next_token_loss(model, next(source))
            optimizers.step(loss, training.learning_rate(step, flags.steps))
            recent = loss.item() if step == 0 else 0.95 * recent + 0.05 * loss.item()
            if (step + 1) % 100 == 0 or step + 1 == flags.steps:
                held = perplexity(model, calibration, flags.seqlen, 128)
                tokens = (step + 1) * flags.rows * flags.seqlen
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
                save(model, tokenizer, flags.output_dir)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the weights in bfloat16 and the tokenizer."""
    copy: Any = LlamaForCausalLM(model.config)
    copy.load_state_dict(model.state_dict())
    copy.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    """Parse the flags and train."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2500, help="training steps (2500)")
    parser.add_argument("--rows", type=int, default=32, help="sequences per batch (32)")
    parser.add_argument("--seqlen", type=int, default=128, help="tokens per sequence (128)")
    parser.add_argument("--vocabulary", type=int, default=2048, help="tokens (2048)")
    parser.add_argument("--seed", type=int, default=0, help="seed of PyTorch (0)")
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch (2)")
    parser.add_argument("--output_dir", type=Path, default=HOME, help="folder for the model")
    parser.add_argument("--log", type=Path, default=LOG, help="CSV file for the training log")
    train(parser.parse_args())


if __name__ == "__main__":
    sys.exit(run_with_exit_status(main))
