"""Summarization: sub-models write, and what they write is compared with a reference."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sos_deap.models.generating import generate, token_settings
from sos_deap.models.loading import Pretrained, load_encoder
from sos_deap.tasks.data.columns import SOURCES, SUMMARIES, one, strings
from sos_deap.tasks.data.draw import Draw, Make
from sos_deap.tasks.data.encoded import Encoded, encode
from sos_deap.tasks.data.reading import Part
from sos_deap.tasks.data.sequences import longest
from sos_deap.tasks.settings import TaskSettings
from sos_deap.tasks.task import checked_metric
from sos_deap.tasks.texts import TextMetrics, fitted


class Summarization:
    """Metrics of generated summaries against references.

    All sub-models of a pass write at once: the batch is theirs in blocks, prompt and every new
    token alike. A sub-model whose texts have ended waits for the others.

    :param prompts: what the model reads; padded on the left for a model without an encoder.
    :param references: in the order in which the prompts were given to be encoded.
    :param tokenizer: to read what was written.
    :param text_metrics: what is computed of it.
    :param device: where the prompts go.
    :param max_new_tokens: most tokens of a summary.
    :param num_beams: beams of the search; 1 is greedy.
    :param metric: the one that counts, a name in ``text_metrics.names``.
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
        """The prompts, and how summaries are written."""
        references = hashlib.sha256("\0".join(self.references).encode()).hexdigest()[:16]
        return {
            **self.prompts.describe(),
            "reference_hash": references,
            "max_new_tokens": self._new_tokens,
            "num_beams": self._num_beams,
            **self._text_metrics.describe(),
        }

    def score(self, model: Any, examples: slice, sub_models: int) -> Tensor:
        """Sums of the text metrics, (sub-models, k)."""
        texts = self.summaries(model, examples, sub_models)
        references = self.references[examples]
        count = len(references)
        blocks = (texts[i * count : (i + 1) * count] for i in range(sub_models))
        rows = [self._text_metrics.sums(block, references) for block in blocks]
        return torch.tensor(rows, dtype=torch.float64)

    def metrics(self, sums: list[float]) -> dict[str, float]:
        """All the text metrics."""
        return self._text_metrics.metrics(sums)

    def summaries(self, model: Any, examples: slice, sub_models: int = 1) -> list[str]:
        """The summaries of some examples, a block for each sub-model."""
        batch = self.prompts.batch(examples, sub_models)
        settings = greedy(model, self._tokenizer, self._new_tokens, self._num_beams)
        written = generate(model, settings, **batch)
        if not model.config.is_encoder_decoder:
            written = written[:, batch["input_ids"].shape[1] :]
        texts: list[str] = self._tokenizer.batch_decode(written, skip_special_tokens=True)
        return [text.strip() for text in texts]


def greedy(model: Any, tokenizer: Any, new_tokens: int, num_beams: int = 1) -> Any:
    """Generation settings without chance, with the model's special tokens.

    :param model: that is to write.
    :param tokenizer: whose padding fills texts that have ended, where the model has none.
    :param new_tokens: most tokens to write.
    :param num_beams: beams of the search; 1 is greedy.
    """
    settings = token_settings(model, tokenizer)
    settings.update(do_sample=False, num_beams=num_beams, max_new_tokens=new_tokens)
    return settings


def make_summarization(loaded: Pretrained, settings: TaskSettings) -> Make:
    """The task on texts and their summaries."""
    model, tokenizer = loaded.model, loaded.tokenizer
    encoder = load_encoder(settings.bertscore_model) if settings.bertscore_model else None
    text_metrics = TextMetrics(encoder)
    writes_on = not model.config.is_encoder_decoder  # the summary follows the text in one sequence
    prompt = settings.prompt or ("{text}\nTL;DR:" if writes_on else "{text}")
    room = longest(loaded, settings.seqlen) - (settings.max_new_tokens if writes_on else 0)

    def texts(part: Part) -> list[str]:
        return strings(part, one(part, settings.text_column, SOURCES, "text"))

    def task(draw: Draw) -> Summarization:
        part = draw.part
        assert part is not None
        articles = texts(part)
        summaries = strings(part, one(part, settings.summary_column, SUMMARIES, "summary"))
        rows = draw.rows(texts)
        prompts = [(fitted(articles[i], tokenizer, prompt, room),) for i in rows]
        return Summarization(
            encode(part.split, prompts, tokenizer, room, model.config.pad_token_id, left=writes_on),
            [summaries[i] for i in rows],
            tokenizer,
            text_metrics,
            model.device,
            settings.max_new_tokens,
            settings.num_beams,
            settings.metric,
        )

    return task
