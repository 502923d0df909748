"""Metrics of the summariser: accuracy of the copied leads, and ROUGE."""

from __future__ import annotations

from typing import Any

import torch
from rouge_score import rouge_scorer
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.standins.summarizer_data import body, sentences
from benchmarks.standins.summarizer_examples import SEPARATOR, SOURCE, SUMMARY, stream

TEMPLATE = "{text}" + SEPARATOR


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


def summary_logits(model: LlamaForCausalLM, inputs: torch.Tensor, places: int) -> torch.Tensor:
    """Return the logits at the last positions; all logits would be two fifths of the operations."""
    states: torch.Tensor = model.model(inputs, use_cache=False).last_hidden_state
    logits: torch.Tensor = model.lm_head(states[:, -places:])
    return logits


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
