"""Training of classifiers on token ids, and their scores."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.standins.training import Optimizers


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


def encode(tokenizer: Any, texts: Sequence[str], labels: Tensor) -> Examples:
    """Tokenize texts."""
    return Examples(tokenizer(list(texts), truncation=True)["input_ids"], labels)


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


def _in_a_layer(name: str, parameter: Tensor) -> bool:
    return parameter.ndim == 2 and ".layer." in name


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
    optimizers = Optimizers(model, _in_a_layer, stage.muon, stage.adamw, beta2=0.98, decay=0.01)
    steps, seen, total, start = 0, 0, stage.epochs * len(examples), time.perf_counter()
    for epoch in range(stage.epochs):
        model.train()
        running = 0.0
        for rows in batches(examples, stage.batch, generator):
            batch = collate([examples.ids[i] for i in rows], tokenizer.pad_token_id)
            batch["input_ids"] = hide(batch["input_ids"], stage.hidden, tokenizer, generator)
            loss = loss_of(model(**batch).logits, examples.labels[rows], positive_weight)
            optimizers.step(loss, learning_rate((seen + len(rows) / 2) / total))
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


def most_frequent_label(train: Examples, test: Examples) -> dict[str, float]:
    """Return the scores of predicting the most frequent label of train for every text."""
    always = torch.full_like(test.labels, -1.0)
    always[:, train.labels.mean(0).argmax()] = 1.0
    return label_scores(always, test.labels)


def lengths(examples: Examples) -> dict[str, float]:
    """Return the median and the maximum length of the texts in tokens."""
    counts = sorted(map(len, examples.ids))
    return {"median": counts[len(counts) // 2], "longest": counts[-1]}
