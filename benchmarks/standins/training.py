"""Optimizers, tokenizer, set-up and files which the training scripts of this folder share."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn

from sos_deap.files.atomic import write_json


def prepare(seed: int, threads: int) -> None:
    """Set the seed and the number of threads of PyTorch, and one thread for tokenizers."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    torch.manual_seed(seed)
    torch.set_num_threads(threads)


def train_byte_level_bpe(
    texts: Iterable[str],
    vocabulary: int,
    special: Sequence[str],
    normalizer: normalizers.Normalizer | None = None,
    max_token_length: int | None = None,
    leading_blank: bool = True,
) -> Tokenizer:
    """Train a byte-level BPE tokenizer.

    :param vocabulary: number of tokens, including special tokens.
    :param special: special tokens, in the order of their ids, from 0.
    :param max_token_length: in characters; default: unlimited.
    :param leading_blank: add a blank to the start of every text, so that a word has the same tokens
        at every position.
    """
    tokenizer = Tokenizer(tokenizers.models.BPE())
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=leading_blank)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=max_token_length,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


class Optimizers:
    """Muon for the matrices of the layers and AdamW for all other parameters.

    :param is_inner: selects the parameters for Muon by name and value.
    :param muon: peak learning rate of Muon.
    :param adamw: peak learning rate of AdamW.
    :param beta2: second beta of AdamW; the first is 0.9.
    :param decay: weight decay of AdamW; that of Muon is 0.02.
    """

    def __init__(
        self,
        model: nn.Module,
        is_inner: Callable[[str, Tensor], bool],
        muon: float,
        adamw: float,
        beta2: float,
        decay: float,
    ) -> None:
        inner: list[Tensor] = []
        outer: list[Tensor] = []
        for name, parameter in model.named_parameters():
            (inner if is_inner(name, parameter) else outer).append(parameter)
        self._parameters = list(model.parameters())
        self._with_peaks: list[tuple[torch.optim.Optimizer, float]] = [
            (torch.optim.Muon(inner, lr=muon, momentum=0.95, weight_decay=0.02), muon),
            (torch.optim.AdamW(outer, lr=adamw, betas=(0.9, beta2), weight_decay=decay), adamw),
        ]

    def step(self, loss: Tensor, factor: float) -> None:
        """Update the parameters by the clipped gradients of a loss.

        :param factor: proportion of the peak learning rates.
        """
        loss.backward()
        nn.utils.clip_grad_norm_(self._parameters, 1.0)
        for optimizer, peak in self._with_peaks:
            optimizer.param_groups[0]["lr"] = peak * factor
            optimizer.step()
            optimizer.zero_grad()


def learning_rate(step: int, steps: int, warmup: int = 50) -> float:
    """Return the factor of the peak rate at a step: linear up, constant, linear to zero."""
    return min((step + 1) / warmup, 1.0, 2.0 * (steps - step) / steps)


def is_matrix_of_a_layer(name: str, parameter: Tensor) -> bool:
    """Return whether a parameter is a matrix, except the embeddings of the tokens."""
    return parameter.ndim == 2 and "embed" not in name


def parameters(model: nn.Module) -> int:
    """Return the number of parameters of a model."""
    return sum(parameter.numel() for parameter in model.parameters())


def versions() -> dict[str, str]:
    """Return the versions on which the weights depend, for training.json."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
    }


def save(model: Any, tokenizer: Any, folder: Path, facts: dict[str, Any]) -> None:
    """Write a model, its tokenizer and training.json."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_json(folder / "training.json", facts)
