r"""Train a small news summariser offline and write it, to measure pruning with ROUGE.

    python benchmarks/standins/train_summarizer.py --data DIR --output_dir DIR    # about 15 minutes

`--data` is a folder with cnn-dailymail/sample.csv, wikitext-2/train.txt and tinystories/valid.txt
and test.txt. The output folder is a transformers model with training.json and, in data/, the
articles as train.csv, validation.csv and test.csv: use that folder as the data set of a pruning
run.

The model is a Llama that learns to continue `{text}\nTL;DR:` with the lead of the text, without its
dateline, up to the end of a sentence. The lead is a strong baseline summary of news, and copying it
depends on attention heads: for the start of the text, for the previous token, and for the token
that followed (induction). Training uses the train articles, WikiText and the stories, but no
highlights. The result is deterministic for one seed, thread count, processor and set of versions.
"""

from __future__ import annotations

import sys
import time
from argparse import Namespace, RawDescriptionHelpFormatter
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import AddedToken, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

# A script that is run by its path imports from its own folder only.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.standins import training
from benchmarks.standins.summarizer_data import (
    ARTICLES,
    COLUMNS,
    STORIES,
    WIKI,
    read_articles,
    read_texts,
    split,
)
from benchmarks.standins.summarizer_examples import (
    BOS,
    EOS,
    PAD,
    SEPARATOR,
    SOURCE,
    SUMMARY,
    Examples,
    examples_of,
    stage_at,
)
from benchmarks.standins.summarizer_metrics import (
    TEMPLATE,
    forced_accuracy,
    measure,
    pairs,
    summary_logits,
)
from sos_deap.cli import Parser, quiet, run_with_exit_status
from sos_deap.errors import InputError
from sos_deap.files.atomic import free_folder, whole_folder, write_csv


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer that begins every text with BOS; the separator is one token.

    Every text gets a leading blank, so that a sentence has the same tokens at every position.
    """
    tokenizer = training.train_byte_level_bpe(
        texts, vocabulary - 1, (PAD, BOS, EOS), max_token_length=16
    )
    tokenizer.add_tokens([AddedToken(SEPARATOR, normalized=False, special=False)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        padding_side="left",
    )


def build(tokenizer: PreTrainedTokenizerFast, flags: Namespace) -> LlamaForCausalLM:
    """Return the untrained model, with narrow feed-forward layers, as copying needs attention."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=flags.width,
            intermediate_size=flags.width,
            num_hidden_layers=flags.layers,
            num_attention_heads=flags.heads,
            num_key_value_heads=flags.heads,
            max_position_embeddings=384,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def fit(
    model: LlamaForCausalLM,
    examples: Examples,
    held: list[tuple[list[int], list[int]]],
    steps: int,
) -> list[dict[str, float]]:
    """Train with Muon for the matrices, which takes fewer steps than Adam; return the log."""
    optimizers = training.Optimizers(
        model, training.is_matrix_of_a_layer, muon=0.02, adamw=0.01, beta2=0.95, decay=0.0
    )
    log: list[dict[str, float]] = []
    began, recent = time.perf_counter(), 0.0
    for step in range(steps):
        inputs, labels = examples.batch(stage_at(step, steps))
        logits = summary_logits(model, inputs, labels.shape[1])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        optimizers.step(loss, training.learning_rate(step, steps))
        recent = loss.item() if step == 0 else 0.95 * recent + 0.05 * loss.item()
        if (step + 1) % 100 == 0 or step + 1 == steps:
            row = {
                "step": step + 1,
                "train_loss": round(recent, 4),
                "validation_accuracy": round(forced_accuracy(model, held), 4),
                "seconds": round(time.perf_counter() - began),
            }
            log.append(row)
            print(row, flush=True)
    return log


def train(flags: Namespace) -> None:
    """Read the data, train, measure and save."""
    _check(flags)
    free_folder(flags.output_dir)
    quiet()
    training.prepare(flags.seed, flags.threads)
    began = time.perf_counter()
    splits = split(read_articles(flags.data / ARTICLES))
    texts = read_texts(flags.data, splits["train"], flags.seed)
    # News is repeated so that its words and punctuation get tokens, as WikiText is larger.
    tokenizer = train_tokenizer(
        [*texts.wiki, *texts.stories, *texts.news * 10, *texts.datelines], flags.vocabulary
    )
    tokenizer.model_max_length = 384
    examples = examples_of(tokenizer, texts, flags.seed)
    model = build(tokenizer, flags)
    held = pairs(tokenizer, splits["validation"])
    print(f"{training.parameters(model):,} parameters", flush=True)
    log = fit(model, examples, held, flags.steps)
    seconds = round(time.perf_counter() - began, 1)
    metrics = measure(model, tokenizer, splits)
    model.generation_config.max_new_tokens = SUMMARY
    facts = {
        "template": TEMPLATE,
        "source_tokens": SOURCE,
        "max_new_tokens": SUMMARY,
        "parameters": training.parameters(model),
        "steps": flags.steps,
        "seed": flags.seed,
        "threads": flags.threads,
        "seconds": seconds,
        "versions": training.versions(),
        "metrics": metrics,
        "log": log,
    }
    with whole_folder(flags.output_dir) as folder:
        write_articles(folder / "data", splits)
        training.save(model, tokenizer, folder, facts)
    print(f"saved to {flags.output_dir}; on the test articles: {metrics['test']}")


def _check(flags: Namespace) -> None:
    """Raise :class:`InputError` for missing data, or for a width that does not fit the heads."""
    for name in (ARTICLES, WIKI, *STORIES):
        if not (flags.data / name).is_file():
            raise InputError(f"data folder {flags.data} has no {name}: give another --data")
    if flags.width % (2 * flags.heads):  # rotary embeddings need an even width per head
        raise InputError(
            f"--width {flags.width} must be an even multiple of --heads {flags.heads}: give another"
        )


def write_articles(folder: Path, splits: dict[str, list[dict[str, str]]]) -> None:
    """Write the articles of each part as a CSV file in a new folder."""
    folder.mkdir()
    for name, rows in splits.items():
        values = [[row[column] for column in COLUMNS] for row in rows]
        write_csv(folder / f"{name}.csv", list(COLUMNS), values)


def main(arguments: list[str] | None = None) -> int:
    """Parse the flags, train, and return the exit status."""
    parser = Parser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the text files")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for the model")
    parser.add_argument("--steps", type=int, default=2200, help="training steps (2200)")
    parser.add_argument("--layers", type=int, default=6, help="layers (6)")
    parser.add_argument("--heads", type=int, default=8, help="heads per layer (8)")
    parser.add_argument("--width", type=int, default=128, help="hidden size (128)")
    parser.add_argument("--vocabulary", type=int, default=4096, help="tokens (4096)")
    parser.add_argument("--seed", type=int, default=0, help="seed of data and PyTorch (0)")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch (1)")
    return run_with_exit_status(lambda: train(parser.parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(main())
