"""Generated text against a reference: ROUGE, BLEU and BERTScore, each by the field's package."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import torch

from sos_deap.errors import InputError

#: ROUGE variants (Lin, 2004) and what is reported of each.
_ROUGE = ("rouge1", "rouge2", "rougeL")
ROUGE = tuple(f"{kind}_{what}" for kind in reversed(_ROUGE) for what in ("f1", "precision"))
_BLEU_SUMS = 10  # matches and n-grams for n = 1 to 4, length, length of the reference


class TextMetrics:
    """Metrics of texts against one reference each, as sums that add up over texts.

    ROUGE is the mean over texts, with stemming; BLEU is that of the corpus (sacreBLEU's default
    tokenization); BERTScore precision (Zhang et al., 2020) is the mean over texts, from the
    encoder's last layer, without baseline rescaling.

    :param encoder: model and tokenizer for BERTScore, if it is wanted.
    :raises InputError: if a package is not installed.
    """

    def __init__(self, encoder: tuple[Any, Any] | None = None) -> None:
        rouge = _extra("rouge_score.rouge_scorer")
        self._rouge: Any = rouge.RougeScorer(list(_ROUGE), use_stemmer=True)
        self._bleu: Any = _extra("sacrebleu.metrics").BLEU(effective_order=True)
        self._encoder = encoder
        if encoder is not None:
            self._bert_score = _extra("torchmetrics.functional.text").bert_score

    @property
    def names(self) -> tuple[str, ...]:
        """The metrics, the one that counts by default first."""
        return (*(["bertscore_precision"] if self._encoder else []), *ROUGE, "bleu")

    def describe(self) -> dict[str, Any]:
        """The encoder behind BERTScore, if there is one."""
        return {"bertscore_model": self._encoder[0].name_or_path} if self._encoder else {}

    def sums(self, texts: Sequence[str], references: Sequence[str]) -> list[float]:
        """What :meth:`metrics` needs, added up over some texts."""
        rows = [self._row(text, ref) for text, ref in zip(texts, references, strict=True)]
        bert = [self._bert_precision(texts, references)] if self._encoder else []
        return [*map(sum, zip(*rows, strict=True)), *bert, float(len(rows))]

    def metrics(self, sums: Sequence[float]) -> dict[str, float]:
        """The metrics by name, ROUGE and BERTScore from 0 to 1, BLEU from 0 to 100."""
        count = sums[-1]
        means = {name: value / count for name, value in zip(ROUGE, sums, strict=False)}
        matches_and_totals = [int(value) for value in sums[len(ROUGE) : len(ROUGE) + _BLEU_SUMS]]
        matches, totals, lengths = (
            matches_and_totals[i:j] for i, j in ((0, 4), (4, 8), (8, _BLEU_SUMS))
        )
        # Smoothed as sacreBLEU smooths a corpus: else a model is worth nothing until four words of
        # it in a row are right.
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
        said = [i for i, text in enumerate(texts) if text.strip()]  # nothing said scores nothing
        if not said:
            return 0.0

        def tokens(strings: Sequence[str]) -> Any:
            encoded = tokenizer(
                [strings[i] for i in said],
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


def fitted(text: str, tokenizer: Any, prompt: str, longest: int) -> str:
    """A prompt with as much of a text as fits.

    :param prompt: with ``{text}`` in the place of the text.
    :param longest: most tokens of the whole.
    """
    around = len(tokenizer(prompt.replace("{text}", ""))["input_ids"])
    room = longest - around - 4  # where text and prompt meet, tokens may fall otherwise
    if room < 1:
        raise InputError(
            f"no text fits into {longest} tokens beside the prompt, which takes {around}: "
            "give a larger --seqlen or a smaller --max_new_tokens"
        )
    return prompt.replace("{text}", text[: _end(text, tokenizer, room)])


def _end(text: str, tokenizer: Any, room: int) -> int:
    """Where the beginning of a text ends that takes at most so many tokens."""
    if tokenizer.is_fast:
        encoded = tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        ends = encoded["offset_mapping"][:room]
        return int(ends[-1][1]) if ends else 0

    # Tokenizers written in Python do not know which characters a token stands for.
    def tokens(end: int) -> int:
        return len(tokenizer(text[:end], add_special_tokens=False, verbose=False)["input_ids"])

    return bisect_right(range(1, len(text) + 1), room, key=tokens)
