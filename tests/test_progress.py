"""How far passes are, what a run will cost, and which perplexity is implausible."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from sos_deap import Evaluator, InputError
from sos_deap.estimate import estimate
from sos_deap.progress import Reading, read_in_turn, watched
from sos_deap.quality import implausible, quality
from sos_deap.report.status import Status
from sos_deap.run import main
from sos_deap.search.limits import Limits
from sos_deap.tasks.data.sequences import Sequences
from sos_deap.tasks.data.unigrams import unigram_perplexity
from sos_deap.tasks.divergence import KL
from sos_deap.tasks.language import Perplexity
from tests.tiny import VOCABULARY, build


class Clock:
    """Time that passes by hand."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_a_pass_counts_tokens_and_estimates_the_rest() -> None:
    clock = Clock()
    reading, lefts = Reading(clock), []
    with watched(reading):
        for _ in read_in_turn("abc", [100, 100, 200]):
            lefts.append(reading.left)
            clock.seconds += 2
    assert lefts == [None, 6.0, 4.0]  # nothing read; 100 of 400 in 2 s; 200 of 400 in 4 s
    assert reading.left is None and reading.rate == pytest.approx(400 / 6)
    assert list(read_in_turn("abc", [1, 1, 1])) == ["a", "b", "c"]
    assert reading.done == 400


def test_the_dense_model_s_passes_are_counted() -> None:
    model, ids = build("llama"), torch.randint(1, VOCABULARY, (40, 16))
    reading = Reading()
    with watched(reading):
        KL(Sequences("random", ids.repeat(20, 1)), model)
        assert (reading.done, reading.total) == (20 * 640, 20 * 640)
        evaluator = Evaluator(model, Perplexity(Sequences("random", ids)), genes="heads+channels")
        assert reading.done == reading.total == 640  # the order of the channels
        evaluator.sums_of(model, Perplexity(Sequences("random", ids[:5])))
        assert reading.done == reading.total == 80


def test_a_step_shows_how_far_it_is_and_keeps_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, lines = Clock(), list[str]()
    status = Status(words=False, clock=clock)
    taken: list[Any] = []

    @contextmanager
    def during(text: Any) -> Iterator[None]:
        taken.append(text)
        yield

    monkeypatch.setattr(status, "during", during)
    with status.step("reading"):
        for _ in read_in_turn("abc", [1000, 1000, 2000]):
            lines.append(taken[0]())
            clock.seconds += 2
    assert lines == [
        "reading, 0:00",
        "reading: 1,000 of 4,000 tokens, 0:02, ETA 0:06",
        "reading: 2,000 of 4,000 tokens, 0:04, ETA 0:04",
    ]
    assert status.rate == pytest.approx(4000 / 6)


def test_the_estimate_by_hand() -> None:
    ids = torch.randint(1, VOCABULARY, (40, 25))
    evaluator = Evaluator(build("llama"), Perplexity(Sequences("random", ids)))
    evaluations = Limits(evaluations=24)
    assert estimate(evaluator, evaluations, 10, 100.0, 6000) == (
        "at most 24,000 tokens in the search (4:00) and 6,000 after it (1:00); "
        "--max_seconds limits the search"
    )
    text = estimate(evaluator, Limits(generations=4, seconds=90), 10, 100.0, 0)
    assert text == "at most 50,000 tokens in the search (1:30) and 0 after it (0:00)"
    assert "at most 7,000 " in str(estimate(evaluator, Limits(tokens=7000), 10, 100.0, 0))
    assert estimate(evaluator, evaluations, 10, 1000.0, 0) is None  # 24 s
    assert estimate(evaluator, evaluations, 10, 0.0, 0) is None
    assert estimate(evaluator, Limits(), 10, 1.0, 0) is None


def test_unigram_perplexity_by_hand() -> None:
    # a a b of a vocabulary of 5: a after one other a, 2/3; b unseen, a third for 4 tokens.
    nats = 2 * math.log(3 / 2) + math.log(12)
    assert unigram_perplexity(torch.tensor([[7, 7, 3]]), 5) == pytest.approx(math.exp(nats / 3))
    assert unigram_perplexity(torch.tensor([1, 2, 3]), 50) == 50  # nothing is known
    assert unigram_perplexity(torch.tensor([4, 4, 4]), 50) == 1


def test_a_model_worse_than_token_frequencies_is_reported() -> None:
    model = build("llama")  # random weights, far from uniform
    texts = {"one token": torch.ones(4, 16), "uniform": torch.randint(1, VOCABULARY, (4, 16))}
    found = {}
    for name, ids in texts.items():
        evaluator = Evaluator(model, Perplexity(Sequences(name, ids.long())))
        found[name] = implausible(evaluator, quality(evaluator, model))
    assert str(found["one token"]).startswith("warning: the perplexity of the dense model, ")
    assert "frequencies of the tokens in the same text, 1.00: check the data" in str(
        found["one token"]
    )


@pytest.mark.parametrize("preset", [["best"], []])
def test_what_is_loaded_is_printed_before_the_model_s_config_is_read(
    preset: list[str], model_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    printed: list[str] = []

    def reading(name: str, *_: Any) -> list[str]:
        printed.append(capsys.readouterr().out)
        return []

    def planning(*_: Any) -> None:
        printed.append(capsys.readouterr().out)
        raise InputError("enough")

    monkeypatch.setattr("sos_deap.config.named_flags", reading)
    monkeypatch.setattr("sos_deap.run.run", planning)
    assert main([*preset, f"--model={model_folder}"]) == 2
    size = (model_folder / "model.safetensors").stat().st_size / 1e6
    line = f"loading {model_folder} ({size:.1f} MB)\n"
    assert printed == ([line, ""] if preset else [line])
    for silent in ("--quiet", "--json_lines"):
        printed.clear()
        main([*preset, f"--model={model_folder}", silent])
        assert not any(printed)
