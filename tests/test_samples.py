"""Samples, compared with a plain loop without a cache."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from sos_deap import head_map, prune
from sos_deap.models.sources import BUILTIN
from sos_deap.tasks.data.encoded import encode
from sos_deap.tasks.data.sequences import Sequences
from sos_deap.tasks.divergence import KL
from sos_deap.tasks.generation import Summarization
from sos_deap.tasks.language import Perplexity, PseudoPerplexity
from sos_deap.tasks.samples import samples
from sos_deap.tasks.task import Task
from sos_deap.tasks.texts import TextMetrics
from tests.tiny import build


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(BUILTIN["builtin:tiny"])


def writer(family: str) -> Any:
    """A random model whose heads all matter."""
    model = build(family, vocab_size=2048, pad_token_id=0, eos_token_id=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def task_of(rows: int, seqlen: int) -> Perplexity:
    return Perplexity(Sequences("random", torch.randint(2, 2048, (rows, seqlen))))


def by_hand(model: Any, prompts: torch.Tensor, count: int) -> list[list[int]]:
    """Draw tokens at temperature 0.7: of exponential waits with their rates, the first to end."""
    chance = torch.Generator().manual_seed(0)
    ids, ended = prompts, torch.zeros(len(prompts), dtype=torch.bool)
    for _ in range(count):
        with torch.no_grad():
            rates = (model(ids).logits[:, -1].double() / 0.7).softmax(-1)
        waits = torch.empty(rates.shape).exponential_(generator=chance)
        token = (waits.double() / rates).argmin(-1).masked_fill(ended, 0)
        ended |= token == 1
        ids = torch.cat((ids, token[:, None]), dim=1)
    return ids[:, prompts.shape[1] :].tolist()


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox", "opt"])
@pytest.mark.parametrize("emptied", [False, True])
def test_models_continue_the_same_prompts_with_the_same_random_numbers(
    family: str, emptied: bool, tokenizer: Any
) -> None:
    dense = writer(family)
    genes = [int(random.random() < 0.6) for _ in range(len(head_map(dense)))]
    if emptied:  # the first layer has no head left
        width = head_map(dense).parts[0].size
        genes[:width] = [0] * width
    pruned, whole = prune(dense, genes), prune(dense, [1] * len(genes))
    task = task_of(rows=7, seqlen=24)
    before = random.getstate(), torch.get_rng_state().tolist()
    models = {"dense": dense, "pruned": pruned, "whole": whole}
    found = samples(task, models, tokenizer, new_tokens=5)
    assert (random.getstate(), torch.get_rng_state().tolist()) == before
    assert samples(task, models, tokenizer, new_tokens=5) == found
    ids = task.sequences.input_ids[[0, 2, 4]]  # spread over all 7
    texts = tokenizer.batch_decode
    assert [one["prompt"] for one in found] == texts(ids[:, :10], skip_special_tokens=True)
    assert [one["text"] for one in found] == texts(ids[:, 10:15], skip_special_tokens=True)
    for name, model in models.items():
        expected = texts(by_hand(model, ids[:, :10], 5), skip_special_tokens=True)
        assert [one[name] for one in found] == expected
    assert all(one["dense"] == one["whole"] for one in found)
    assert any(one["dense"] != one["pruned"] for one in found)


def test_no_more_positions_than_were_evaluated(tokenizer: Any) -> None:
    model = build("gpt2", vocab_size=2048, n_positions=20)
    for seqlen, prompt in ((2, 1), (3, 2), (20, 10)):
        task = task_of(rows=2, seqlen=seqlen)
        found = samples(task, {"dense": model}, tokenizer)
        ids = task.sequences.input_ids
        assert len(found) == 2
        assert [one["prompt"] for one in found] == tokenizer.batch_decode(ids[:, :prompt])
        assert [one["text"] for one in found] == tokenizer.batch_decode(ids[:, prompt:])


def test_a_divergence_is_about_text_and_an_encoder_writes_none(tokenizer: Any) -> None:
    model, sequences = writer("llama"), task_of(rows=3, seqlen=8).sequences
    tasks: list[Task] = [KL(sequences, model), PseudoPerplexity(sequences, 3, (0, 0))]
    assert [len(samples(task, {"dense": model}, tokenizer)) for task in tasks] == [3, 0]


@pytest.mark.parametrize("family", ["bart", "llama"])
def test_summaries_are_those_of_the_task(family: str, tokenizer: Any) -> None:
    model = build(family, vocab_size=2048, pad_token_id=0, eos_token_id=1, forced_eos_token_id=None)
    texts = ["raise an error", "return a list of the values", "a module", "the class of a value"]
    left = family == "llama"
    prompts = encode("x", [(text,) for text in texts], tokenizer, 20, 0, left=left)
    task = Summarization(prompts, texts, tokenizer, TextMetrics(), max_new_tokens=6)
    found = samples(task, {"dense": model}, tokenizer)
    assert [one["prompt"] for one in found] == [one["text"] for one in found]
    assert len({one["prompt"] for one in found}) == 3
    for one in found:
        ids = tokenizer(one["prompt"], return_tensors="pt")["input_ids"]
        start = ids if left else torch.tensor([[model.config.decoder_start_token_id]])
        written = start
        for _ in range(6):
            with torch.no_grad():
                read = written if left else ids
                more = {} if left else {"decoder_input_ids": written}
                logits = model(read, **more).logits[:, -1]
            written = torch.cat((written, logits.argmax(-1, keepdim=True)), dim=1)
            if written[0, -1] == 1:
                break
        new = written[0, start.shape[1] :]
        assert one["dense"] == tokenizer.decode(new, skip_special_tokens=True).strip()
