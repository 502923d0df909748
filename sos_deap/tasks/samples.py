"""Samples: texts that several models generate from the same prompts, for comparison."""

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
from sos_deap.tasks.summary_divergence import DivergenceAndTexts, SummaryDivergence
from sos_deap.tasks.task import Task

#: A sample: its ``prompt``, the reference ``text``, and the text of each model by its name.
Sample = dict[str, str]

_TEMPERATURE = 0.7  # for a small model, greedy text is repetitive and temperature 1 too noisy


def samples(
    task: Task, models: Mapping[str, Any], tokenizer: Any, count: int = 3, new_tokens: int = 32
) -> list[Sample]:
    """Let models generate text from the same prompts.

    For tasks on running text, models continue the beginnings of sequences, within the length that
    they were evaluated on. They sample with the same random numbers, so texts diverge only where
    the models do. For summarization, models summarize as the task does. The global random
    generators are not used.

    :param task: task whose examples are the prompts, evenly spaced.
    :param models: models by name, such as ``dense`` and ``pruned``.
    :param tokenizer: tokenizer of the models.
    :param count: most samples.
    :param new_tokens: most tokens of a continuation.
    :returns: the samples; none for a task without generated text.
    """
    count = min(count, len(task))
    rows = [i * len(task) // count for i in range(count)]
    with torch.inference_mode():
        if isinstance(task, SummaryDivergence | DivergenceAndTexts):
            task = task.task
        if isinstance(task, Summarization):
            return [_summarized(task, row, models, tokenizer) for row in rows]
        if isinstance(task, Perplexity | KL):
            return _continued(task.sequences.input_ids[rows], models, tokenizer, new_tokens)
    return []


class SharedGumbelNoise(LogitsProcessor):
    """Samples tokens by the Gumbel-max trick, with the same random numbers for all models."""

    def __init__(self) -> None:
        self._generator = torch.Generator().manual_seed(0)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return noisy scores, (samples, vocabulary), whose maximum is the sampled token."""
        # On the CPU, so that the noise is the same on every device.
        waits = torch.empty(scores.shape).exponential_(generator=self._generator)
        return scores.float() / _TEMPERATURE - waits.log().to(scores.device)


def _continued(ids: Tensor, models: Mapping[str, Any], tokenizer: Any, most: int) -> list[Sample]:
    """Let models continue the beginnings of sequences.

    :param ids: token ids of the sequences, (samples, seqlen).
    :param most: most tokens of a continuation; at most half of a sequence.
    """
    new = min(most, ids.shape[1] // 2)
    before = min(2 * most, ids.shape[1] - new)
    prompts = ids[:, :before]
    found = {"prompt": prompts, "text": ids[:, before : before + new]}
    for name, model in models.items():
        prompt_ids = prompts.to(model.device)
        generated = generate(
            model,
            greedy(model, tokenizer, new),
            input_ids=prompt_ids,
            attention_mask=torch.ones_like(prompt_ids),
            logits_processor=LogitsProcessorList([SharedGumbelNoise()]),
        )
        found[name] = generated[:, before:]
    texts = {name: _decoded(tokenizer, tokens) for name, tokens in found.items()}
    return [dict(zip(texts, row, strict=True)) for row in zip(*texts.values(), strict=True)]


def _summarized(task: Summarization, row: int, models: Mapping[str, Any], tokenizer: Any) -> Sample:
    one = slice(row, row + 1)
    [prompt] = _decoded(tokenizer, task.prompts.batch(one, 1)["input_ids"])
    summaries = {name: task.summaries(model, one)[0] for name, model in models.items()}
    return {"prompt": prompt, "text": task.references[row], **summaries}


def _decoded(tokenizer: Any, tokens: Tensor) -> list[str]:
    texts: list[str] = tokenizer.batch_decode(tokens, skip_special_tokens=True)
    return texts
