"""What models write after the same beginnings, to be read side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from sos_deap.models.generating import generate
from sos_deap.tasks.divergence import KL
from sos_deap.tasks.generation import Summarization, greedy
from sos_deap.tasks.language import Perplexity
from sos_deap.tasks.task import Task

#: One sample: its ``prompt``, how the ``text`` goes on, and what each model writes, by its name.
Sample = dict[str, str]

_TEMPERATURE = 0.7  # of a small model, greedy decoding repeats itself and all of chance is noise


def samples(
    task: Task, models: Mapping[str, Any], tokenizer: Any, count: int = 3, new_tokens: int = 32
) -> list[Sample]:
    """Let models write, each with the same luck: where they write another text, they differ.

    Of running text they continue the beginnings of sequences, on no more positions than they were
    evaluated on. Texts to summarize they summarize as the task does. No random generator but the
    samples' own is drawn from.

    :param task: whose examples to take, evenly spread over them.
    :param models: whole models by name, such as ``dense`` and ``pruned``.
    :param tokenizer: theirs.
    :param count: how many samples, or as many as there are examples if fewer.
    :param new_tokens: most tokens to continue running text by.
    :returns: the samples; none for a task that is not about text that a model writes.
    """
    least = min(count, len(task))
    rows = [i * len(task) // least for i in range(least)]
    with torch.inference_mode():
        if isinstance(task, Summarization):
            return [_summarized(task, row, models, tokenizer) for row in rows]
        if isinstance(task, Perplexity | KL):
            return _continued(task.sequences.input_ids[rows], models, tokenizer, new_tokens)
    return []


class SharedGumbelNoise(LogitsProcessor):
    """Makes the likeliest token a random one (the Gumbel-max trick), the same for all models."""

    def __init__(self) -> None:
        self._generator = torch.Generator().manual_seed(0)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores of which the greatest is that of the token drawn, (samples, vocabulary)."""
        # On the CPU, so that it is the same on every device.
        waits = torch.empty(scores.shape).exponential_(generator=self._generator)
        return scores.float() / _TEMPERATURE - waits.log().to(scores.device)


def _continued(ids: Tensor, models: Mapping[str, Any], tokenizer: Any, most: int) -> list[Sample]:
    """Sequences, (samples, seqlen), of which the models read what comes before the new tokens."""
    new = min(most, ids.shape[1] // 2)
    before = min(2 * most, ids.shape[1] - new)
    prompts = ids[:, :before]
    found = {"prompt": prompts, "text": ids[:, before : before + new]}
    for name, model in models.items():
        read = prompts.to(model.device)
        written = generate(
            model,
            greedy(model, tokenizer, new),
            input_ids=read,
            attention_mask=torch.ones_like(read),
            logits_processor=LogitsProcessorList([SharedGumbelNoise()]),
        )
        found[name] = written[:, before:]
    texts = {name: _read(tokenizer, tokens) for name, tokens in found.items()}
    return [dict(zip(texts, row, strict=True)) for row in zip(*texts.values(), strict=True)]


def _summarized(task: Summarization, row: int, models: Mapping[str, Any], tokenizer: Any) -> Sample:
    one = slice(row, row + 1)
    [prompt] = _read(tokenizer, task.prompts.batch(one, 1)["input_ids"])
    summaries = {name: task.summaries(model, one)[0] for name, model in models.items()}
    return {"prompt": prompt, "text": task.references[row], **summaries}


def _read(tokenizer: Any, tokens: Tensor) -> list[str]:
    texts: list[str] = tokenizer.batch_decode(tokens, skip_special_tokens=True)
    return texts
