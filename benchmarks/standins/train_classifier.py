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
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import normalizers, processors
from transformers import PreTrainedTokenizerFast

# A script that is run by its path imports from its own folder only.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.standins import training
from benchmarks.standins.classifier_data import other_tweets, read_rows, split_tweets
from benchmarks.standins.classifier_models import distilbert, roberta
from benchmarks.standins.classifier_training import (
    Examples,
    Stage,
    accuracy,
    encode,
    fit,
    label_scores,
    lengths,
    most_frequent_label,
    predict,
)
from sos_deap.cli import Parser, run_with_exit_status
from sos_deap.files.atomic import whole_folder

#: 90 % of the labels are 0: without a weight, few of the sigmoids exceed one half.
POSITIVE_WEIGHT = 3.0

#: Special tokens by their names in transformers, in the order of their ids.
SST2_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
TWEETS_TOKENS = {
    "cls_token": "<s>",
    "pad_token": "<pad>",
    "sep_token": "</s>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
}


@dataclass(frozen=True)
class Result:
    """A trained model with its tokenizer and its facts for training.json.

    :param split: rows to write by part, if the data set has no split; else empty.
    """

    model: Any
    tokenizer: PreTrainedTokenizerFast
    facts: dict[str, Any]
    split: dict[str, list[dict[str, Any]]]


def train_tokenizer(
    texts: Sequence[str], vocabulary: int, length: int, special: dict[str, str]
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer for lower-case text, with cls and sep around every text.

    Text is lower-cased because few words occur in both cases.

    :param length: maximum length of an input in tokens.
    :param special: special tokens by their names in transformers, in the order of their ids.
    """
    normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer = training.train_byte_level_bpe(texts, vocabulary, list(special.values()), normalizer)
    first, last = special["cls_token"], special["sep_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}",
        pair=f"{first} $A {last} $B {last}",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (first, last)],
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=length, **special)


def train_sst2(data: Path, seed: int) -> Result:
    """Train a DistilBERT on SST-2; the dev part is monitored, the test part used once.

    Most rows of dev are phrases of sentences in train, so metrics on dev are optimistic.
    """
    length, stage = 80, Stage(epochs=2, batch=2048, hidden=0.2)
    rows = {
        part: read_rows(data / "sst2" / f"{part}.tsv", ("sentence", "label"))
        for part in ("train", "dev", "test")
    }
    tokenizer = train_tokenizer(
        [row["sentence"] for row in rows["train"]], 8000, length, SST2_TOKENS
    )
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
    labels, rows = split_tweets(data)
    others = other_tweets(data, leave_out=[row["text"] for row in rows["test"]])
    texts = [row["text"] for row in others + rows["train"]]
    tokenizer = train_tokenizer(texts, 4000, length, TWEETS_TOKENS)
    topics, single = _with_one_topic(tokenizer, others)
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

    watch = partial(scores, "validation")
    steps = fit(model, tokenizer, parts["train"], second, seed, watch, POSITIVE_WEIGHT)
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


def _with_one_topic(tokenizer: Any, rows: list[dict[str, Any]]) -> tuple[list[str], Examples]:
    """Return the names of the topics and the tokenized tweets, labelled by position in them."""
    topics = sorted({row["label_name"] for row in rows})
    numbers = torch.tensor([topics.index(row["label_name"]) for row in rows])
    return topics, encode(tokenizer, [row["text"] for row in rows], numbers)


def save(result: Result, folder: Path, facts: dict[str, Any]) -> None:
    """Write the model, the tokenizer, training.json and the split, if any."""
    training.save(result.model, result.tokenizer, folder, facts | result.facts)
    for part, rows in result.split.items():
        (folder / "data").mkdir(exist_ok=True)
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (folder / "data" / f"{part}.jsonl").write_text("".join(lines), encoding="utf-8")


TASKS = {"sst2": train_sst2, "tweets": train_tweets}


def train(flags: argparse.Namespace) -> None:
    """Train, save, and print the metrics."""
    transformers.utils.logging.disable_progress_bar()
    training.prepare(flags.seed, flags.threads)
    start = time.perf_counter()
    with whole_folder(flags.output_dir) as temporary_folder:
        result = TASKS[flags.task](flags.data, flags.seed)
        facts = {
            "task": flags.task,
            "seed": flags.seed,
            "threads": flags.threads,
            "seconds": round(time.perf_counter() - start, 1),
            "parameters": training.parameters(result.model),
            "versions": training.versions(),
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
