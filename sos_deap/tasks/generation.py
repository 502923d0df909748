"""Summarization: sub-models generate summaries, which are compared with references."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sos_deap.models.generating import generate, token_settings
from sos_deap.tasks.data.encoded import Encoded
from sos_deap.tasks.task import checked_metric
from sos_deap.tasks.texts import TextMetrics


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
            **self.describe_texts(),
            "reference_hash": references,
            **self._text_metrics.describe(),
        }

    def describe_texts(self) -> dict[str, Any]:
        """Return the source, size and hash of the texts, and the settings of generation."""
        return {
            **self.prompts.describe(),
            "max_new_tokens": self._new_tokens,
            "num_beams": self._num_beams,
        }

    def score(self, model: Any, examples: slice, sub_models: int) -> Tensor:
        """Return the sums of the text metrics, (sub_models, k)."""
        texts = self.summaries(model, examples, sub_models)
        count = len(self.references[examples])
        blocks = (texts[i * count : (i + 1) * count] for i in range(sub_models))
        return torch.stack([self.sums(block, examples) for block in blocks])

    def sums(self, texts: Sequence[str], examples: slice) -> Tensor:
        """Return the sums of the text metrics of summaries of some examples, (k,), float64."""
        found = self._text_metrics.sums(texts, self.references[examples])
        return torch.tensor(found, dtype=torch.float64)

    def metrics(self, sums: list[float]) -> dict[str, float]:
        """Return all text metrics by name."""
        return self._text_metrics.metrics(sums)

    def summaries(self, model: Any, examples: slice, sub_models: int = 1) -> list[str]:
        """Return the generated summaries of some examples, sub-model after sub-model."""
        return self.decoded(self.generated(model, examples, sub_models)[1])

    def decoded(self, summaries: Any) -> list[str]:
        """Return summaries as texts.

        :param summaries: the token ids of each summary.
        """
        texts: list[str] = self._tokenizer.batch_decode(summaries, skip_special_tokens=True)
        return [text.strip() for text in texts]

    def generated(self, model: Any, examples: slice, sub_models: int = 1) -> tuple[Tensor, Tensor]:
        """Generate summaries of some examples, sub-model after sub-model.

        :returns: the token ids that the summaries continue, (rows, tokens): the prompts, padded on
            the left, or the start token of an encoder-decoder; and those of the summaries,
            (rows, tokens), padded on the right after their end tokens.
        """
        batch = self.prompts.batch(examples, sub_models)
        tokens = generate(model, self.settings(model), **batch)
        start = 1 if model.config.is_encoder_decoder else batch["input_ids"].shape[1]
        return tokens[:, :start], tokens[:, start:]

    def settings(self, model: Any) -> Any:
        """Return the settings of generation."""
        return greedy(model, self._tokenizer, self._new_tokens, self._num_beams)


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
