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

import csv
import hashlib
import os
import platform
import random
import re
import sys
import time
from argparse import Namespace, RawDescriptionHelpFormatter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from rouge_score import rouge_scorer
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sos_deap.cli import Parser, quiet, run_with_exit_status
from sos_deap.errors import InputError
from sos_deap.files.atomic import free_folder, whole_folder, write_csv, write_json

ARTICLES = "cnn-dailymail/sample.csv"
WIKI = "wikitext-2/train.txt"
STORIES = ("tinystories/valid.txt", "tinystories/test.txt")
COLUMNS = ("id", "article", "highlights")
PAD, BOS, EOS = "<pad>", "<s>", "</s>"
SEPARATOR = "\nTL;DR:"
TEMPLATE = "{text}" + SEPARATOR
SOURCE = 192  # tokens of an article that the model sees
SUMMARY = 80  # maximum tokens of a summary; its last sentence may be cut
SHORTEST = 60  # a summary ends with the first sentence that reaches this many tokens
IGNORED = -100  # cross_entropy's label for "no loss here"

# Text before the first sentence of an article: bylines, dates and places.
_PLACE = r"(?:[A-Z][\w .,'-]{2,40}\s+)?\(CNN\)(?:\s*--)?\s*"
_NAMES = r"By \. [^.|]{3,60} \. (?:and [^.|]{3,40} \. )?"
_DATES = r"(?:PUBLISHED|UPDATED): \. [^.|]{5,40} \. |\| \. |Last updated at [^.|]{5,40} \. "
DATELINE = re.compile(f"^(?:{_NAMES}|{_DATES}|{_PLACE})+")
_CLOSING, _OPENING = "[\"'\u201d\u2019)]", "[\"'\u201c\u2018(]"
SENTENCE_END = re.compile(rf"(?:(?<=[.!?])|(?<=[.!?]{_CLOSING}))\s+(?={_OPENING}*[A-Z0-9\u00a3$])")


@dataclass(frozen=True)
class Stage:
    """A stage of the curriculum: the model learns to copy short texts first, then longer ones.

    :param share: proportion of all steps.
    :param sources: minimum and maximum length of a text in tokens.
    :param summary: maximum length of a target in tokens.
    :param rows: texts per batch.
    :param noise: proportion of texts of random tokens, which can be predicted by copying only.
    """

    share: float
    sources: tuple[int, int]
    summary: int
    rows: int
    noise: float


STAGES = (
    Stage(0.25, (6, 24), 24, 48, 0.5),
    Stage(0.20, (24, 64), 48, 24, 0.3),
    Stage(0.25, (64, 128), SUMMARY, 12, 0.1),
    Stage(0.30, (112, SOURCE), SUMMARY, 10, 0.1),
)


@dataclass(frozen=True)
class Stream:
    """Running text as token ids, with the offsets at which sentences begin."""

    tokens: torch.Tensor
    starts: torch.Tensor

    def lead(self, start: int) -> tuple[int, bool]:
        """Return the length of the lead that begins at `start`, and whether it ends a sentence."""
        place = int(torch.searchsorted(self.starts, start + SHORTEST))
        length = int(self.starts[place]) - start if place < len(self.starts) else SUMMARY
        return (length, True) if length < SUMMARY else (SUMMARY, False)


def read_articles(path: Path) -> list[dict[str, str]]:
    """Read the rows of the news sample, without its unnamed column.

    :raises InputError: if a column is missing.
    """
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows or not set(COLUMNS) <= set(rows[0]):
        raise InputError(f"{path} has not all columns {', '.join(COLUMNS)}: give another --data")
    return [{name: row[name] for name in COLUMNS} for row in rows]


def split(rows: list[dict[str, str]]) -> dict[str, list[dict[str, str]]]:
    """Split the articles by a hash of their ids: 30 % train, 30 % validation, 40 % test."""
    rows = sorted(rows, key=lambda row: hashlib.sha256(row["id"].encode()).hexdigest())
    first, second = len(rows) * 3 // 10, len(rows) * 6 // 10
    return {"train": rows[:first], "validation": rows[first:second], "test": rows[second:]}


def invented(draw: random.Random) -> str:
    """Return an invented name of one to three syllables, which can be predicted by copying only."""
    syllables = (draw.choice("bcdfghjklmnprstvwz") + draw.choice("aeiou") for _ in range(3))
    word = "".join(list(syllables)[: draw.randint(1, 3)]) + draw.choice(("", "n", "r", "s", "l"))
    return word.capitalize()


def wiki_text(raw: str, draw: random.Random) -> Iterator[str]:
    """Yield detokenized paragraphs of WikiText, with an invented name for each <unk>."""
    for line in raw.splitlines():
        text = line.strip()
        if len(text) < 100 or text.startswith("="):
            continue
        text = re.sub("<unk>", lambda _: invented(draw), text)
        text = re.sub(r" @(.)@ ", r"\1", text)
        text = re.sub(r" ([,.;:!?)\]%]|'s|n't|'ll|'re|'ve)(?= |$)", r"\1", text)
        text = re.sub(r"([(\[$£]) ", r"\1", text)
        yield re.sub(r'" (.*?) "', r'"\1"', text)


def dateline(draw: random.Random) -> str:
    """Return a dateline in the style of the two newspapers of the sample, with invented names."""
    name, place = (f"{invented(draw)} {invented(draw)}" for _ in range(2))
    if draw.random() < 0.5:
        before = draw.choice(("", "", f"{place}, ", f"{invented(draw).upper()}, "))
        return draw.choice(("(CNN) --", f"{before}{invented(draw)} (CNN) --"))
    moments = [
        f"{draw.randint(1, 23):02d}:{draw.randint(0, 59):02d} EST, {_day(draw)}" for _ in range(2)
    ]
    by = draw.choice((f"By . {name} . ", "By . Daily Mail Reporter . ", f"By . {name} . ", ""))
    if by and draw.random() < 0.1:
        by += f"and {place} . "
    dates = (
        f"PUBLISHED: . {moments[0]} . | . UPDATED: . {moments[1]} .",
        f"UPDATED: . {moments[1]} .",
        f"Last updated at {draw.randint(1, 12)}:{draw.randint(0, 59):02d} "
        f"{draw.choice(('AM', 'PM'))} on {_day(draw)} .",
    )
    return (by + ("" if by and draw.random() < 0.4 else draw.choice(dates))).strip()


def _day(draw: random.Random) -> str:
    months = "January February March April May June July August September October November December"
    ending = draw.choice(("", "th"))
    return f"{draw.randint(1, 30)}{ending} {draw.choice(months.split())} {draw.randint(2008, 2015)}"


def sentences(text: str) -> list[str]:
    """Split running text into sentences."""
    return [part for part in SENTENCE_END.split(" ".join(text.split())) if part]


def body(article: str) -> str:
    """Return an article without its dateline."""
    return DATELINE.sub("", article).strip()


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer that begins every text with BOS; the separator is one token.

    Every text gets a leading blank, so that a sentence has the same tokens at every position.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - 1,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=16,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
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


def stream(tokenizer: PreTrainedTokenizerFast, texts: Iterable[str]) -> Stream:
    """Tokenize all texts into one row, with the offsets of sentences."""
    parts = [sentence for text in texts for sentence in sentences(text)]
    rows = tokenizer(parts, add_special_tokens=False)["input_ids"]
    lengths = torch.tensor([0, *(len(row) for row in rows)])
    return Stream(torch.tensor([t for row in rows for t in row]), lengths.cumsum(0)[:-1])


class Examples:
    """Batches of the copy task.

    :param streams: running texts, each with its proportion of the rows.
    :param datelines: token ids of the datelines to prepend to a part of the texts.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        streams: list[tuple[float, Stream]],
        datelines: list[list[int]],
        seed: int,
    ) -> None:
        self.streams = streams
        self.datelines = datelines
        self.draw = random.Random(seed)
        ids: Any = tokenizer.convert_tokens_to_ids([BOS, EOS, SEPARATOR])
        self.bos, self.eos, self.separator = ids
        self.vocabulary = len(tokenizer)

    def batch(self, stage: Stage) -> tuple[torch.Tensor, torch.Tensor]:
        """Return inputs (rows, tokens) and the labels of their last `summary` positions.

        All texts of a batch have the same length, so only the targets are padded.
        """
        length = self.draw.randint(*stage.sources)
        pairs = [self._row(stage, length) for _ in range(stage.rows)]
        inputs = torch.full((stage.rows, length + stage.summary + 1), self.eos)
        labels = torch.full((stage.rows, stage.summary), IGNORED)
        for row, (source, target) in enumerate(pairs):
            seen = [self.bos, *source, self.separator, *target[:-1]]
            inputs[row, : len(seen)] = torch.tensor(seen)
            labels[row, : len(target)] = torch.tensor(target)
        return inputs, labels

    def _row(self, stage: Stage, length: int) -> tuple[list[int], list[int]]:
        """Return a text of `length` tokens and its lead."""
        if self.draw.random() < stage.noise:
            source = [self.draw.randrange(3, self.vocabulary - 1) for _ in range(length)]
            return source, source[: stage.summary]
        weights = [weight for weight, _ in self.streams]
        found = self.draw.choices(self.streams, weights)[0][1]
        last = int(torch.searchsorted(found.starts, len(found.tokens) - SOURCE))
        start = int(found.starts[self.draw.randrange(last)])
        before = self.draw.choice(self.datelines) if self.draw.random() < 0.4 else []
        before = before if len(before) < length // 2 else []
        source = before + found.tokens[start : start + length - len(before)].tolist()
        size, ends = found.lead(start)
        target = found.tokens[start : start + size].tolist() + [self.eos] * ends
        return source, target[: min(stage.summary, length - len(before))]


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


def summary_logits(model: LlamaForCausalLM, inputs: torch.Tensor, places: int) -> torch.Tensor:
    """Return the logits at the last positions; all logits would be two fifths of the operations."""
    states: torch.Tensor = model.model(inputs, use_cache=False).last_hidden_state
    logits: torch.Tensor = model.lm_head(states[:, -places:])
    return logits


def learning_rate(step: int, steps: int, warmup: int = 50) -> float:
    """Return the factor of the peak rate at a step: linear up, constant, linear to zero."""
    return min((step + 1) / warmup, 1.0, 2.0 * (steps - step) / steps)


def stage_at(step: int, steps: int) -> Stage:
    """Return the stage of the curriculum at a step."""
    reached = 0.0
    for stage in STAGES:
        reached += stage.share
        if step < reached * steps:
            return stage
    return STAGES[-1]


def fit(
    model: LlamaForCausalLM,
    examples: Examples,
    held: list[tuple[list[int], list[int]]],
    steps: int,
) -> list[dict[str, float]]:
    """Train with Muon for the matrices, which takes fewer steps than Adam; return the log."""
    inner = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    outer = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(inner, lr=0.02, momentum=0.95, weight_decay=0.02),
        torch.optim.AdamW(outer, lr=0.01, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    peaks = [o.param_groups[0]["lr"] for o in optimizers]
    log: list[dict[str, float]] = []
    began, recent = time.perf_counter(), 0.0
    for step in range(steps):
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            optimizer.param_groups[0]["lr"] = peak * learning_rate(step, steps)
        inputs, labels = examples.batch(stage_at(step, steps))
        logits = summary_logits(model, inputs, labels.shape[1])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
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


def pairs(
    tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, str]]
) -> list[tuple[list[int], list[int]]]:
    """Return the token ids of the prompt and of the expected lead of each article."""
    result = []
    for row in rows:
        text = stream(tokenizer, [body(row["article"])])
        size, ends = text.lead(0)
        target = text.tokens[:size].tolist() + [tokenizer.eos_token_id] * ends
        result.append((tokenizer(prompt(tokenizer, row["article"]))["input_ids"], target))
    return result


def prompt(tokenizer: PreTrainedTokenizerFast, article: str) -> str:
    """Return the template with an article, truncated to `SOURCE` tokens."""
    ids = tokenizer(article, add_special_tokens=False, verbose=False)["input_ids"][:SOURCE]
    return TEMPLATE.format(text=_text(tokenizer, ids))


@torch.inference_mode()
def forced_accuracy(model: LlamaForCausalLM, held: list[tuple[list[int], list[int]]]) -> float:
    """Return the proportion of the leads' tokens predicted correctly with teacher forcing."""
    right = total = 0
    for source, target in held:
        inputs = torch.tensor([source + target[:-1]])
        best = summary_logits(model, inputs, len(target))[0].argmax(-1)
        right += int((best == torch.tensor(target)).sum())
        total += len(target)
    return right / total


@torch.inference_mode()
def summarize(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, article: str
) -> list[int]:
    """Return the token ids of the greedy summary by `generate`."""
    inputs: Any = tokenizer(prompt(tokenizer, article), return_tensors="pt")
    generator: Any = model  # transformers types generate for another class
    output = generator.generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        max_new_tokens=SUMMARY,
        do_sample=False,
    )
    tokens: list[int] = output[0, inputs["input_ids"].shape[1] :].tolist()
    return tokens


def rouge(summaries: list[str], references: list[str]) -> dict[str, float]:
    """Return the mean ROUGE F1 with stemming, as in papers on this data set."""
    kinds = ("rouge1", "rouge2", "rougeL")
    scorer = rouge_scorer.RougeScorer(kinds, use_stemmer=True)
    scores = [scorer.score(r, s) for r, s in zip(references, summaries, strict=True)]
    return {k: round(sum(s[k].fmeasure for s in scores) / len(scores), 4) for k in kinds}


def copied(tokens: list[int], target: list[int]) -> int:
    """Return the number of the target's tokens at the same position in a summary."""
    return sum(a == b for a, b in zip(tokens, target, strict=False))


def measure(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    splits: dict[str, list[dict[str, str]]],
) -> dict[str, Any]:
    """Measure copy accuracy and ROUGE on the validation and test articles."""
    model.eval()
    result: dict[str, Any] = {}
    for name in ("validation", "test"):
        rows, held = splits[name], pairs(tokenizer, splits[name])
        written = [summarize(model, tokenizer, row["article"]) for row in rows]
        total = sum(len(target) for _, target in held)
        same = sum(copied(w, target) for w, (_, target) in zip(written, held, strict=True))
        highlights = [row["highlights"] for row in rows]
        first = [" ".join(sentences(body(row["article"]))[:3]) for row in rows]
        raw = [" ".join(sentences(row["article"])[:3]) for row in rows]
        result[name] = {
            "articles": len(rows),
            "copy_accuracy_forced": round(forced_accuracy(model, held), 4),
            "copy_accuracy_generated": round(same / total, 4),
            "ended": sum(tokenizer.eos_token_id in w for w in written),
            "rouge": rouge([_text(tokenizer, w) for w in written], highlights),
            "rouge_of_target": rouge([_text(tokenizer, t) for _, t in held], highlights),
            "rouge_of_lead3_cut": rouge([_cut(tokenizer, t) for t in first], highlights),
            "rouge_of_lead3_with_dateline_cut": rouge(
                [_cut(tokenizer, t) for t in raw], highlights
            ),
            "rouge_of_lead3": rouge(first, highlights),
        }
    return result


def _text(tokenizer: PreTrainedTokenizerFast, tokens: list[int]) -> str:
    return str(tokenizer.decode(tokens, skip_special_tokens=True)).strip()


def _cut(tokenizer: PreTrainedTokenizerFast, text: str) -> str:
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return _text(tokenizer, ids[:SUMMARY])


def train(flags: Namespace) -> None:
    """Read the data, train, measure and save."""
    for name in (ARTICLES, WIKI, *STORIES):
        if not (flags.data / name).is_file():
            raise InputError(f"data folder {flags.data} has no {name}: give another --data")
    if flags.width % (2 * flags.heads):  # rotary embeddings need an even width per head
        raise InputError(
            f"--width {flags.width} must be an even multiple of --heads {flags.heads}: give another"
        )
    free_folder(flags.output_dir)
    quiet()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    torch.manual_seed(flags.seed)
    torch.set_num_threads(flags.threads)
    began = time.perf_counter()
    splits = split(read_articles(flags.data / ARTICLES))
    draw = random.Random(flags.seed)
    wiki = list(wiki_text((flags.data / WIKI).read_text(encoding="utf-8"), draw))
    stories = [
        " ".join(story.split())
        for name in STORIES
        for story in (flags.data / name).read_text(encoding="utf-8").split("\n\n")
    ]
    news = [body(row["article"]) for row in splits["train"]]
    datelines = [dateline(draw) for _ in range(2000)]
    # News is repeated so that its words and punctuation get tokens, as WikiText is larger.
    tokenizer = train_tokenizer([*wiki, *stories, *news * 10, *datelines], flags.vocabulary)
    tokenizer.model_max_length = 384
    streams = [
        (0.6, stream(tokenizer, wiki)),
        (0.15, stream(tokenizer, stories)),
        (0.25, stream(tokenizer, news)),
    ]
    marks = tokenizer(datelines, add_special_tokens=False)["input_ids"]
    model = build(tokenizer, flags)
    examples = Examples(tokenizer, streams, marks, flags.seed)
    held = pairs(tokenizer, splits["validation"])
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    log = fit(model, examples, held, flags.steps)
    trained = time.perf_counter() - began
    metrics = measure(model, tokenizer, splits)
    model.generation_config.max_new_tokens = SUMMARY
    facts = {
        "template": TEMPLATE,
        "source_tokens": SOURCE,
        "max_new_tokens": SUMMARY,
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": flags.steps,
        "seed": flags.seed,
        "threads": flags.threads,
        "seconds": round(trained, 1),
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
        },
        "metrics": metrics,
        "log": log,
    }
    with whole_folder(flags.output_dir) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (folder / "data").mkdir()
        for name, rows in splits.items():
            write_csv(
                folder / "data" / f"{name}.csv",
                list(COLUMNS),
                [[row[column] for column in COLUMNS] for row in rows],
            )
        write_json(folder / "training.json", facts)
    print(f"saved to {flags.output_dir}; on the test articles: {metrics['test']}")


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
