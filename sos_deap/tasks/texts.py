"""Metrics of generated text: ROUGE, BLEU and BERTScore, from the usual packages."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import torch

from sos_deap.errors import InputError
from sos_deap.tasks.task import ROUGE, ROUGE_KINDS

_BLEU_SUMS = 10  # matches and n-grams for n = 1 to 4, length, length of the reference


class TextMetrics:
    """Metrics of texts with one reference each, as sums that are additive over texts.

    ROUGE is the mean over texts, with stemming; BLEU is corpus BLEU (sacreBLEU's default
    tokenization); BERTScore precision (Zhang et al., 2020) is the mean over texts, from the
    encoder's last layer, without baseline rescaling.

    :param encoder: model and tokenizer for BERTScore; default: no BERTScore.
    :raises InputError: if a package is not installed.
    """

    def __init__(self, encoder: tuple[Any, Any] | None = None) -> None:
        rouge = _extra("rouge_score.rouge_scorer")
        self._rouge: Any = rouge.RougeScorer(list(ROUGE_KINDS), use_stemmer=True)
        self._bleu: Any = _extra("sacrebleu.metrics").BLEU(effective_order=True)
        self._encoder = encoder
        if encoder is not None:
            self._bert_score = _extra("torchmetrics.functional.text").bert_score

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the metrics, the default for the fitness first."""
        return (*(["bertscore_precision"] if self._encoder else []), *ROUGE, "bleu")

    def describe(self) -> dict[str, Any]:
        """Return the name of BERTScore's encoder, if there is one."""
        return {"bertscore_model": self._encoder[0].name_or_path} if self._encoder else {}

    def sums(self, texts: Sequence[str], references: Sequence[str]) -> list[float]:
        """Return the sums over some texts that :meth:`metrics` takes.

        :param texts: generated texts.
        :param references: a reference for each text.
        """
        rows = [self._row(text, ref) for text, ref in zip(texts, references, strict=True)]
        bert = [self._bert_precision(texts, references)] if self._encoder else []
        return [*map(sum, zip(*rows, strict=True)), *bert, float(len(rows))]

    def metrics(self, sums: Sequence[float]) -> dict[str, float]:
        """Return the metrics by name: ROUGE and BERTScore from 0 to 1, BLEU from 0 to 100."""
        count = sums[-1]
        means = {name: value / count for name, value in zip(ROUGE, sums, strict=False)}
        matches_and_totals = [int(value) for value in sums[len(ROUGE) : len(ROUGE) + _BLEU_SUMS]]
        matches, totals, lengths = (
            matches_and_totals[i:j] for i, j in ((0, 4), (4, 8), (8, _BLEU_SUMS))
        )
        # Smoothed, as sacreBLEU's corpus BLEU is: otherwise BLEU is 0 without a matching 4-gram.
        bleu = self._bleu.compute_bleu(matches, totals, *lengths, smooth_method="exp")
        means["bleu"] = bleu.score
        if self._encoder:
            means["bertscore_precision"] = sums[-2] / count
        return {name: means[name] for name in self.names}

    def _row(self, text: str, reference: str) -> list[float]:
        scores = self._rouge.score(reference, text)
        of = {"f1": "fmeasure", "precision": "precision"}
        rouge = [getattr(scores[kind], of[what]) for kind, what in (n.split("_") for n in ROUGE)]
        bleu = self._bleu.sentence_score(text, [reference])
        return [*rouge, *bleu.counts, *bleu.totals, bleu.sys_len, bleu.ref_len]

    def _bert_precision(self, texts: Sequence[str], references: Sequence[str]) -> float:
        assert self._encoder is not None
        model, tokenizer = self._encoder
        nonempty = [i for i, text in enumerate(texts) if text.strip()]  # empty texts score 0
        if not nonempty:
            return 0.0

        def tokens(strings: Sequence[str]) -> Any:
            encoded = tokenizer(
                [strings[i] for i in nonempty],
                padding=True,
                truncation=True,
                max_length=min(tokenizer.model_max_length, 512),
                return_tensors="pt",
            )
            return {name: encoded[name] for name in ("input_ids", "attention_mask")}

        scores = self._bert_score(
            tokens(texts), tokens(references), model=model, device=model.device
        )
        return float(torch.as_tensor(scores["precision"]).double().sum())


def _extra(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        raise InputError(
            f"the task summarization needs {module.partition('.')[0]}: "
            "pip install 'sos_deap[summarization]'"
        ) from error


def fit_prompt(text: str, tokenizer: Any, prompt: str, longest: int) -> str:
    """Return a prompt with as much of a text as fits.

    :param text: the text.
    :param tokenizer: tokenizer of the model.
    :param prompt: the prompt, with ``{text}`` as placeholder.
    :param longest: most tokens of the prompt with the text.
    :raises InputError: if no token of a text fits.
    """
    used = len(tokenizer(prompt.replace("{text}", ""))["input_ids"])
    most = longest - used - 4  # at the seams between text and prompt, tokens may differ
    if most < 1:
        raise InputError(
            f"no text fits into {longest} tokens with the prompt, which takes {used}: "
            "give a larger --seqlen or a smaller --max_new_tokens"
        )
    return prompt.replace("{text}", text[: _end(text, tokenizer, most)])


def _end(text: str, tokenizer: Any, most: int) -> int:
    """Return the number of characters of the longest prefix of at most ``most`` tokens."""
    if tokenizer.is_fast:
        encoded = tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        ends = encoded["offset_mapping"][:most]
        return int(ends[-1][1]) if ends else 0

    # Tokenizers written in Python have no mapping from tokens to characters.
    def tokens(end: int) -> int:
        return len(tokenizer(text[:end], add_special_tokens=False, verbose=False)["input_ids"])

    return bisect_right(range(1, len(text) + 1), most, key=tokens)
