"""Train small text classifiers from scratch and write them; a few minutes on one CPU thread.

    python benchmarks/standins/train_classifier.py sst2 --data DIR --output_dir DIR
    python benchmarks/standins/train_classifier.py tweets --data DIR --output_dir DIR

They replace two fine-tuned models offline: `sst2` is a DistilBERT (6 layers x 12 heads) that
classifies sentences as positive or negative, `tweets` a RoBERTa (12 layers x 12 heads) that assigns
any of 19 topics to a tweet. The folder of --data contains sst2/{train,dev,test}.tsv (sentence,
label), or tweet-topic-multilabel/all.jsonl (id, text and one column of 0/1 per topic) and
tweet-topic/{train,test}.jsonl (text, label_name: other tweets, one topic each).

The output folder can be loaded with transformers and contains training.json with settings and
metrics; for `tweets` also data/{train,validation,test}.jsonl, the split used in training. The
result is deterministic for one seed, thread count, processor and set of versions.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

import tokenizers
import torch
import transformers
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    DistilBertConfig,
    DistilBertForSequenceClassification,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from sos_deap.cli import Parser, run_with_exit_status
from sos_deap.errors import InputError
from sos_deap.files.atomic import whole_folder, write_json

TWEETS = "tweet-topic-multilabel/all.jsonl"
OTHER_TWEETS = ("tweet-topic/train.jsonl", "tweet-topic/test.jsonl")
NOT_LABELS = ("id", "text", "topics")
Problem = Literal["single_label_classification", "multi_label_classification"]

HEADS = 12
WIDTH = 96  # 8 per head
#: The layers have no dropout: it took a quarter of the time on a CPU. Masking tokens
#: (`Stage.hidden`) reduces overfitting at no cost.
NO_DROPOUT = 0.0
#: 90 % of the labels are 0: without a weight, few of the sigmoids exceed one half.
POSITIVE_WEIGHT = 3.0


@dataclass(frozen=True)
class Stage:
    """Hyperparameters of training on one set of labels.

    :param batch: tokens per batch, including padding.
    :param hidden: proportion of the tokens replaced by the mask token in training.
    :param muon: peak learning rate of Muon.
    :param adamw: peak learning rate of AdamW.
    """

    epochs: int
    batch: int
    hidden: float
    muon: float = 0.015
    adamw: float = 0.003


@dataclass(frozen=True)
class Examples:
    """Texts as token ids; labels are classes, or rows of 0.0 and 1.0."""

    ids: list[list[int]]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Result:
    """A trained model with its tokenizer and its facts for training.json.

    :param split: rows to write by part, if the data set has no split; else empty.
    """

    model: Any
    tokenizer: PreTrainedTokenizerFast
    facts: dict[str, Any]
    split: dict[str, list[dict[str, Any]]]


def read_rows(path: Path, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Read the rows of a .jsonl file, or of a .tsv file with a header.

    :raises InputError: if the file cannot be read, or a column is missing.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(_rows(file, path.suffix))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; give another --data") from error
    except ValueError as error:  # not JSON, or not UTF-8
        raise InputError(f"{path} is damaged: {error}") from error
    missing = [name for name in columns if not rows or name not in rows[0]]
    if missing:
        raise InputError(f"{path} has no column {missing[0]!r}: give another --data")
    return rows


def _rows(file: TextIO, suffix: str) -> Iterator[dict[str, Any]]:
    if suffix == ".jsonl":
        return (json.loads(line) for line in file)
    # Quotation marks in SST-2 are ordinary characters.
    return csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)


def train_tokenizer(
    texts: Sequence[str], vocabulary: int, length: int, special: dict[str, str]
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer for lower-case text, with cls and sep around every text.

    Text is lower-cased because few words occur in both cases.

    :param length: maximum length of an input in tokens.
    :param special: special tokens by their names in transformers, in the order of their ids.
    """
    tokenizer = Tokenizer(tokenizers.models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(special.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    first, last = special["cls_token"], special["sep_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}",
        pair=f"{first} $A {last} $B {last}",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (first, last)],
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=length, **special)


def encode(tokenizer: Any, texts: Sequence[str], labels: Tensor) -> Examples:
    """Tokenize texts."""
    return Examples(tokenizer(list(texts), truncation=True)["input_ids"], labels)


def initialize_as_identity(model: nn.Module) -> None:
    """Zero the last matrix of each attention and feed-forward block: layers start as identity.

    With the default initialization, 12 post-norm layers learned only the most frequent label.
    """
    for name, parameter in model.named_parameters():
        if name.endswith(("output.dense.weight", "out_lin.weight", "lin2.weight")):
            nn.init.zeros_(parameter)


def batches(examples: Examples, tokens: int, generator: torch.Generator) -> Iterator[list[int]]:
    """Yield shuffled batches of indices, of similar lengths and at most `tokens` tokens each."""
    order = torch.randperm(len(examples), generator=generator).tolist()
    order.sort(key=lambda i: len(examples.ids[i]))  # stable: random among those of one length
    found: list[list[int]] = [[]]
    for i in order:
        if found[-1] and (len(found[-1]) + 1) * len(examples.ids[i]) > tokens:
            found.append([])
        found[-1].append(i)
    yield from (found[i] for i in torch.randperm(len(found), generator=generator).tolist())


def collate(rows: list[list[int]], pad: int) -> dict[str, Tensor]:
    """Pad rows on the right to one batch."""
    longest = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (longest - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": (ids != pad).long()}


def hide(ids: Tensor, share: float, tokenizer: Any, generator: torch.Generator) -> Tensor:
    """Replace a random proportion of the tokens by the mask token, except special tokens."""
    special = torch.isin(ids, torch.tensor(tokenizer.all_special_ids))
    chosen = (torch.rand(ids.shape, generator=generator) < share) & ~special
    return ids.masked_fill(chosen, tokenizer.mask_token_id)


def learning_rate(done: float, warmup: float = 0.05) -> float:
    """Return the factor of the peak rate at a proportion of the stage: linear up, then down."""
    return min(done / warmup, (1.0 - done) / (1.0 - warmup))


def optimizers(model: nn.Module, stage: Stage) -> list[torch.optim.Optimizer]:
    """Return Muon for the matrices in the layers and AdamW for all other parameters."""
    inner: list[Tensor] = []
    outer: list[Tensor] = []
    for name, parameter in model.named_parameters():
        (inner if parameter.ndim == 2 and ".layer." in name else outer).append(parameter)
    return [
        torch.optim.Muon(inner, lr=stage.muon, momentum=0.95, weight_decay=0.02),
        torch.optim.AdamW(outer, lr=stage.adamw, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def loss_of(logits: Tensor, labels: Tensor, positive_weight: float) -> Tensor:
    """Return the mean cross-entropy of classes, or of each label of rows of 0.0 and 1.0."""
    if labels.is_floating_point():
        weight = torch.tensor(positive_weight)
        return functional.binary_cross_entropy_with_logits(logits, labels, pos_weight=weight)
    return functional.cross_entropy(logits, labels)


def fit(
    model: Any,
    tokenizer: Any,
    examples: Examples,
    stage: Stage,
    seed: int,
    watch: Callable[[], object] = str,
    positive_weight: float = 1.0,
) -> int:
    """Train a model for one stage.

    :param watch: called after each epoch; its result is printed.
    :returns: the number of steps.
    """
    generator = torch.Generator().manual_seed(seed)
    pulls = optimizers(model, stage)
    peaks = [pull.param_groups[0]["lr"] for pull in pulls]
    steps, seen, total, start = 0, 0, stage.epochs * len(examples), time.perf_counter()
    for epoch in range(stage.epochs):
        model.train()
        running = 0.0
        for rows in batches(examples, stage.batch, generator):
            batch = collate([examples.ids[i] for i in rows], tokenizer.pad_token_id)
            batch["input_ids"] = hide(batch["input_ids"], stage.hidden, tokenizer, generator)
            for pull, peak in zip(pulls, peaks, strict=True):
                pull.param_groups[0]["lr"] = peak * learning_rate((seen + len(rows) / 2) / total)
            loss = loss_of(model(**batch).logits, examples.labels[rows], positive_weight)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for pull in pulls:
                pull.step()
                pull.zero_grad()
            steps, seen = steps + 1, seen + len(rows)
            running += loss.item() * len(rows)
        seconds = time.perf_counter() - start
        print(
            f"epoch {epoch + 1} of {stage.epochs}: loss {running / len(examples):.4f}, "
            f"{seconds:.0f} s {watch()}",
            flush=True,
        )
    return steps


def predict(model: Any, tokenizer: Any, examples: Examples) -> Tensor:
    """Return the logits of all examples, in their order."""
    model.eval()
    found = torch.empty(len(examples), model.config.num_labels)
    with torch.inference_mode():
        for rows in batches(examples, 8192, torch.Generator().manual_seed(0)):
            batch = collate([examples.ids[i] for i in rows], tokenizer.pad_token_id)
            found[rows] = model(**batch).logits
    return found


def accuracy(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Return the proportion of examples whose most likely class is the label."""
    return {"accuracy": round((logits.argmax(-1) == labels).float().mean().item(), 4)}


def label_scores(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Return micro-F1 and the proportion of exact rows, with a threshold of one half."""
    guessed = (logits > 0).float()
    hits, marked = (guessed * labels).sum(), guessed.sum() + labels.sum()
    exact = (guessed == labels).all(-1).float().mean()
    return {
        "micro_f1": round((2 * hits / marked).item(), 4),
        "subset_accuracy": round(exact.item(), 4),
    }


def train_sst2(data: Path, seed: int) -> Result:
    """Train a DistilBERT on SST-2; the dev part is monitored, the test part used once.

    Most rows of dev are phrases of sentences in train, so metrics on dev are optimistic.
    """
    length, stage = 80, Stage(epochs=2, batch=2048, hidden=0.2)
    rows = {
        part: read_rows(data / "sst2" / f"{part}.tsv", ("sentence", "label"))
        for part in ("train", "dev", "test")
    }
    names = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    kinds = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    special = dict(zip(kinds, names, strict=True))
    tokenizer = train_tokenizer([row["sentence"] for row in rows["train"]], 8000, length, special)
    parts = {
        part: encode(
            tokenizer,
            [row["sentence"] for row in found],
            torch.tensor([int(row["label"]) for row in found]),
        )
        for part, found in rows.items()
    }
    model = distilbert(tokenizer, length, {0: "negative", 1: "positive"})

    def scores(part: str) -> dict[str, float]:
        return accuracy(predict(model, tokenizer, parts[part]), parts[part].labels)

    steps = fit(model, tokenizer, parts["train"], stage, seed, lambda: scores("dev"))
    facts = {
        "stages": {"labels": asdict(stage) | {"steps": steps}},
        "examples": {part: len(examples) for part, examples in parts.items()},
        "lengths": lengths(parts["test"]),
        "metrics": {part: scores(part) for part in ("dev", "test")},
    }
    return Result(model, tokenizer, facts, split={})


def train_tweets(data: Path, seed: int) -> Result:
    """Train a RoBERTa on tweets with one topic each, then on other tweets with several topics each.

    The validation part is monitored, the test part used once.
    """
    length = 160
    first = Stage(epochs=2, batch=2048, hidden=0.1)
    second = Stage(epochs=24, batch=1024, hidden=0.15, muon=0.004, adamw=0.001)
    tweets = read_rows(data / TWEETS, ("id", "text"))
    labels = [name for name in tweets[0] if name not in NOT_LABELS]
    rows: dict[str, list[dict[str, Any]]] = {"train": [], "validation": [], "test": []}
    for tweet in tweets:
        rows[part_of(tweet["id"])].append({n: tweet[n] for n in ("id", "text", *labels)})
    others = other_tweets(data, leave_out=[row["text"] for row in rows["test"]])

    names = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
    kinds = ("cls_token", "pad_token", "sep_token", "unk_token", "mask_token")
    special = dict(zip(kinds, names, strict=True))
    texts = [row["text"] for row in others + rows["train"]]
    tokenizer = train_tokenizer(texts, 4000, length, special)
    topics = sorted({row["label_name"] for row in others})
    numbers = torch.tensor([topics.index(row["label_name"]) for row in others])
    single = encode(tokenizer, [row["text"] for row in others], numbers)
    parts = {
        part: encode(
            tokenizer,
            [row["text"] for row in found],
            torch.tensor([[float(row[name]) for name in labels] for row in found]),
        )
        for part, found in rows.items()
    }
    teacher = roberta(tokenizer, length, dict(enumerate(topics)), "single_label_classification")
    first_steps = fit(teacher, tokenizer, single, first, seed)
    model = roberta(tokenizer, length, dict(enumerate(labels)), "multi_label_classification")
    # All but the last matrix is transferred. Twice these learning rates can destroy it.
    model.base_model.load_state_dict(teacher.base_model.state_dict())
    model.classifier.dense.load_state_dict(teacher.classifier.dense.state_dict())

    def scores(part: str) -> dict[str, float]:
        return label_scores(predict(model, tokenizer, parts[part]), parts[part].labels)

    steps = fit(
        model,
        tokenizer,
        parts["train"],
        second,
        seed,
        lambda: scores("validation"),
        POSITIVE_WEIGHT,
    )
    facts = {
        "stages": {
            "topics": asdict(first) | {"steps": first_steps},
            "labels": asdict(second) | {"steps": steps, "positive_weight": POSITIVE_WEIGHT},
        },
        "examples": {"topics": len(single)} | {part: len(found) for part, found in parts.items()},
        "lengths": lengths(parts["test"]),
        "metrics": {part: scores(part) for part in ("validation", "test")},
        "most_frequent_label": most_frequent_label(parts["train"], parts["test"]),
    }
    return Result(model, tokenizer, facts, split=rows)


def part_of(id_: object) -> str:
    """Return the part of a tweet by a hash of its id, independently of the order of the file."""
    tenth = int(hashlib.sha256(str(id_).encode()).hexdigest(), 16) % 10
    return "train" if tenth < 7 else "validation" if tenth < 8 else "test"


def other_tweets(data: Path, leave_out: Sequence[str]) -> list[dict[str, Any]]:
    """Return the tweets with one topic each, without those whose text is in `leave_out`."""
    known = {plain(text) for text in leave_out}
    found = [row for file in OTHER_TWEETS for row in read_rows(data / file, ("text", "label_name"))]
    return [row for row in found if plain(row["text"]) not in known]


def plain(text: str) -> str:
    """Return a text's letters and digits, to find copies with other punctuation."""
    return "".join(filter(str.isalnum, text.casefold()))


def most_frequent_label(train: Examples, test: Examples) -> dict[str, float]:
    """Return the scores of predicting the most frequent label of train for every text."""
    always = torch.full_like(test.labels, -1.0)
    always[:, train.labels.mean(0).argmax()] = 1.0
    return label_scores(always, test.labels)


def lengths(examples: Examples) -> dict[str, float]:
    """Return the median and the maximum length of the texts in tokens."""
    counts = sorted(map(len, examples.ids))
    return {"median": counts[len(counts) // 2], "longest": counts[-1]}


def distilbert(
    tokenizer: Any, length: int, labels: dict[int, str]
) -> DistilBertForSequenceClassification:
    """Return an untrained DistilBERT with 6 layers x 12 heads."""
    config = DistilBertConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=length,
        n_layers=6,
        n_heads=HEADS,
        dim=WIDTH,
        hidden_dim=2 * WIDTH,
        dropout=NO_DROPOUT,
        attention_dropout=NO_DROPOUT,
        pad_token_id=tokenizer.pad_token_id,
        id2label=labels,
        label2id={name: number for number, name in labels.items()},
        problem_type="single_label_classification",
    )
    model = DistilBertForSequenceClassification(config)
    initialize_as_identity(model)
    return model


def roberta(
    tokenizer: Any, length: int, labels: dict[int, str], problem: Problem
) -> RobertaForSequenceClassification:
    """Return an untrained RoBERTa with 12 layers x 12 heads."""
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=length + tokenizer.pad_token_id + 1,  # starts after the pad id
        type_vocab_size=1,
        num_hidden_layers=12,
        num_attention_heads=HEADS,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        hidden_dropout_prob=NO_DROPOUT,
        attention_probs_dropout_prob=NO_DROPOUT,
        classifier_dropout=0.1,
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
        pad_token_id=tokenizer.pad_token_id,
        id2label=labels,
        label2id={name: number for number, name in labels.items()},
        problem_type=problem,
    )
    model = RobertaForSequenceClassification(config)
    initialize_as_identity(model)
    return model


def save(result: Result, folder: Path, facts: dict[str, Any]) -> None:
    """Write the model, the tokenizer, training.json and the split, if any."""
    result.model.save_pretrained(folder)
    result.tokenizer.save_pretrained(folder)
    write_json(folder / "training.json", facts | result.facts)
    for part, rows in result.split.items():
        (folder / "data").mkdir(exist_ok=True)
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / "data" / f"{part}.jsonl").write_text("".join(lines), encoding="utf-8")


TASKS = {"sst2": train_sst2, "tweets": train_tweets}


def train(flags: argparse.Namespace) -> None:
    """Train, save, and print the metrics."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(flags.seed)
    torch.set_num_threads(flags.threads)
    start = time.perf_counter()
    with whole_folder(flags.output_dir) as temporary_folder:
        result = TASKS[flags.task](flags.data, flags.seed)
        facts = {
            "task": flags.task,
            "seed": flags.seed,
            "threads": flags.threads,
            "seconds": round(time.perf_counter() - start, 1),
            "parameters": sum(p.numel() for p in result.model.parameters()),
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "tokenizers": tokenizers.__version__,
            },
        }
        save(result, temporary_folder, facts)
    print(f"{result.facts['metrics']}, {facts['seconds']} s; saved to {flags.output_dir}")


def main() -> int:
    """Parse the flags, train, and return the exit status."""
    parser = Parser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("task", choices=TASKS, help="the classifier to train")
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for the model")
    parser.add_argument("--seed", type=int, default=0, help="seed of PyTorch (0)")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch (1)")
    return run_with_exit_status(lambda: train(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
