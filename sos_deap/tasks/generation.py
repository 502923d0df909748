"""Summarization: sub-models generate summaries, which are compared with references."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sos_deap.models.generating import generate, token_settings
from sos_deap.models.loading import Pretrained, load_encoder
from sos_deap.tasks.data.columns import SOURCES, SUMMARIES, one, strings
from sos_deap.tasks.data.draw import Draw, TaskMaker
from sos_deap.tasks.data.encoded import Encoded, encode
from sos_deap.tasks.data.reading import Part
from sos_deap.tasks.data.sequences import longest
from sos_deap.tasks.settings import TaskSettings
from sos_deap.tasks.task import checked_metric
from sos_deap.tasks.texts import TextMetrics, fit_prompt


class Summarization:
    """Metrics of generated summaries against references.

    All sub-models of a pass generate at the same time, each in its block of the batch; the pass
    ends when all summaries have ended.

    :param prompts: tokenized prompts; padded on the left for a model without an encoder.
    :param references: reference summaries, in the original order of the prompts.
    :param tokenizer: tokenizer of the model, to decode the summaries.
    :param text_metrics: the metrics to compute.
    :param device: device of the model.
    :param max_new_tokens: most tokens of a summary.
    :param num_beams: number of beams of beam search; 1 is greedy search.
    :param metric: the metric for the fitness, a name in ``text_metrics.names``; default: the first.
    """

    greater_is_better = True
    one_pass = False
    reference_tokens = 0
    shares_passes = True

    def __init__(
        self,
        prompts: Encoded,
        references: Sequence[str],
        tokenizer: Any,
        text_metrics: TextMetrics,
        device: torch.device | str = "cpu",
        max_new_tokens: int = 64,
        num_beams: int = 1,
        metric: str | None = None,
    ) -> None:
        self.name = checked_metric(metric, text_metrics.names)
        self.prompts = prompts.to(device)
        self.references = [references[i] for i in prompts.order]
        self._tokenizer, self._text_metrics = tokenizer, text_metrics
        self._new_tokens, self._num_beams = max_new_tokens, num_beams
        self.seqlen = (int(prompts.lengths[0]) + max_new_tokens) * num_beams
        self.tokens = int(prompts.lengths.sum()) + len(prompts.order) * max_new_tokens

    def __len__(self) -> int:
        return len(self.references)

    def describe(self) -> dict[str, Any]:
        """Return the source, size and hashes of the examples, and the settings of generation."""
        references = hashlib.sha256("\0".join(self.references).encode()).hexdigest()[:16]
        return {
            **self.prompts.describe(),
            "reference_hash": references,
            "max_new_tokens": self._new_tokens,
            "num_beams": self._num_beams,
            **self._text_metrics.describe(),
        }

    def score(self, model: Any, examples: slice, sub_models: int) -> Tensor:
        """Return the sums of the text metrics, (sub_models, k)."""
        texts = self.summaries(model, examples, sub_models)
        references = self.references[examples]
        count = len(references)
        blocks = (texts[i * count : (i + 1) * count] for i in range(sub_models))
        rows = [self._text_metrics.sums(block, references) for block in blocks]
        return torch.tensor(rows, dtype=torch.float64)

    def metrics(self, sums: list[float]) -> dict[str, float]:
        """Return all text metrics by name."""
        return self._text_metrics.metrics(sums)

    def summaries(self, model: Any, examples: slice, sub_models: int = 1) -> list[str]:
        """Return the generated summaries of some examples, sub-model after sub-model."""
        batch = self.prompts.batch(examples, sub_models)
        settings = greedy(model, self._tokenizer, self._new_tokens, self._num_beams)
        generated = generate(model, settings, **batch)
        if not model.config.is_encoder_decoder:
            generated = generated[:, batch["input_ids"].shape[1] :]
        texts: list[str] = self._tokenizer.batch_decode(generated, skip_special_tokens=True)
        return [text.strip() for text in texts]


def greedy(model: Any, tokenizer: Any, new_tokens: int, num_beams: int = 1) -> Any:
    """Return settings of deterministic generation, with the model's special tokens.

    :param model: the model.
    :param tokenizer: its tokenizer, for the padding token if the model has none.
    :param new_tokens: most tokens to generate.
    :param num_beams: number of beams of beam search; 1 is greedy search.
    """
    settings = token_settings(model, tokenizer)
    settings.update(do_sample=False, num_beams=num_beams, max_new_tokens=new_tokens)
    return settings


def make_summarization(loaded: Pretrained, settings: TaskSettings) -> TaskMaker:
    """Return what makes the task ``summarization``, on texts and their summaries."""
    model, tokenizer = loaded.model, loaded.tokenizer
    encoder = load_encoder(settings.bertscore_model) if settings.bertscore_model else None
    text_metrics = TextMetrics(encoder)
    causal = not model.config.is_encoder_decoder  # prompt and summary are one sequence
    prompt = settings.prompt or ("{text}\nTL;DR:" if causal else "{text}")
    most = longest(loaded, settings.seqlen) - (settings.max_new_tokens if causal else 0)

    def texts(part: Part) -> list[str]:
        return strings(part, one(part, settings.text_column, SOURCES, "text"))

    def task(draw: Draw) -> Summarization:
        part = draw.part
        assert part is not None
        articles = texts(part)
        summaries = strings(part, one(part, settings.summary_column, SUMMARIES, "summary"))
        rows = draw.rows(texts)
        prompts = [(fit_prompt(articles[i], tokenizer, prompt, most),) for i in rows]
        return Summarization(
            encode(part.split, prompts, tokenizer, most, model.config.pad_token_id, left=causal),
            [summaries[i] for i in rows],
            tokenizer,
            text_metrics,
            model.device,
            settings.max_new_tokens,
            settings.num_beams,
            settings.metric,
        )

    return task
