from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig

from sos_deap import InputError
from sos_deap.tasks.data import Sequences
from sos_deap.tasks.metrics import Perplexity, checked_seqlen


def test_a_uniform_model_has_the_vocabulary_s_size_as_perplexity() -> None:
    task = Perplexity(Sequences("x", torch.randint(0, 50, (4, 9))))

    class Uniform:
        config = LlamaConfig(vocab_size=50)

        def __call__(self, ids: torch.Tensor, use_cache: bool) -> SimpleNamespace:
            return SimpleNamespace(logits=torch.zeros(*ids.shape, 50, dtype=torch.bfloat16))

    sums = task.score(Uniform(), slice(0, 4), 3)
    assert sums.shape == (3, 2)
    assert sums[:, 1].tolist() == [4 * 8] * 3  # the first token of a sequence is not scored
    assert task.metric(sums[0].tolist()) == pytest.approx(50)


def test_overflow_is_infinite_and_nan_stays() -> None:
    task = Perplexity(Sequences("x", torch.zeros(1, 2, dtype=torch.long)))
    assert task.metric([1e6, 1.0]) == math.inf
    assert math.isnan(task.metric([math.nan, 1.0]))


def test_seqlen() -> None:
    config = SimpleNamespace(max_position_embeddings=4096)
    assert checked_seqlen(None, config) == 2048
    assert checked_seqlen(4096, config) == 4096
    assert checked_seqlen(None, SimpleNamespace(max_position_embeddings=128)) == 128
    with pytest.raises(InputError, match="seqlen is 4097, beyond the model's 4096"):
        checked_seqlen(4097, config)
    with pytest.raises(InputError, match="at least 2 tokens"):
        checked_seqlen(1, config)
