"""Every weight and every setting changes the fingerprint of a model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel

from sos_deap.models.identity import fingerprint, state
from tests.conftest import small_llama


def test_every_tensor_counts_wherever_it_is_changed() -> None:
    model = small_llama()
    marks = {fingerprint(model)}
    tensors = [tensor for _, tensor in model.named_parameters()]
    for tensor in tensors:
        with torch.no_grad():
            tensor.view(-1)[len(tensor.view(-1)) // 3] += 1e-3
        marks.add(fingerprint(model))
    assert len(marks) == len(tensors) + 1


def test_a_buffer_that_is_saved_counts() -> None:
    plain = torch.nn.BatchNorm1d(3)
    other = copy.deepcopy(plain)
    other.get_buffer("running_mean")[1] = 0.5
    assert fingerprint(plain) == fingerprint(copy.deepcopy(plain)) != fingerprint(other)
    assert state(plain) != state(other)


def rope(model: Any) -> None:
    model.config.rope_parameters = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}


def half(model: Any) -> None:
    model.bfloat16()


def epsilon(model: Any) -> None:
    model.config.rms_norm_eps = 1e-3


def named(model: Any) -> None:
    model.config._name_or_path, model.config.architectures = "elsewhere", ["Other"]


def outputs(model: Any) -> None:
    model.config.output_hidden_states, model.config.use_cache = True, False


def padding(model: Any) -> None:
    model.config.pad_token_id = 7


@pytest.mark.parametrize(
    ("change", "counts"),
    [
        (rope, True),
        (half, True),
        (epsilon, True),
        (named, False),
        (outputs, False),
        (padding, False),  # in the scope of an evaluator
    ],
)
def test_settings_that_compute_count(change: Callable[[Any], None], counts: bool) -> None:
    model = small_llama()
    before = fingerprint(model)
    change(model)
    assert (fingerprint(model) != before) == counts


def test_saved_and_loaded_it_is_the_same(tmp_path: Any) -> None:
    config = BertConfig(
        vocab_size=50,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
    )
    model = BertModel(config)
    model.save_pretrained(tmp_path)
    assert fingerprint(BertModel.from_pretrained(tmp_path)) == fingerprint(model)


def test_the_state_changes_with_every_usual_change_of_weights() -> None:
    model = small_llama()
    states = [state(model)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.arange(4)[None], labels=torch.arange(4)[None]).loss.backward()
    assert state(model) == states[-1]  # gradients are no weights
    optimizer.step()
    states.append(state(model))
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    states.append(state(model))
    model.bfloat16()
    states.append(state(model))
    assert len(set(states)) == 4
