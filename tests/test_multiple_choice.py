"""Multiple choice by batched sub-models, compared with lm-eval and with sliced models."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForMaskedLM, AutoTokenizer

from sos_deap import Evaluator, InputError, prune
from sos_deap.models.sources import BUILTIN
from sos_deap.tasks.data.choices import Question, questions
from sos_deap.tasks.data.encoded_choices import encoded_questions
from sos_deap.tasks.data.reading import Part
from sos_deap.tasks.data.sequences import start_of_sequences
from sos_deap.tasks.multiple_choice import MultipleChoice
from tests.conftest import small_llama
from tests.tiny import build

WORDS = ["list", "value", "module", "the object", "of", "return", "a class", "error"]


def rows(count: int, kind: str, seed: int = 3) -> list[dict[str, Any]]:
    """Rows of one format, with random words."""
    rng = random.Random(seed)

    def text(most: int) -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(1, most)))

    found: list[dict[str, Any]] = []
    for number in range(count):
        if kind == "query":
            choices = rng.sample([*WORDS, f"{text(3)} x", f"{text(4)} y"], k=2 + number % 4)
            ask = "Question: what is" if number % 2 else "it is"
            found.append({"query": f"{ask} {text(6)}\n", "choices": choices})
        elif kind == "options":
            found.append({"context_options": [text(5), text(2)], "continuation": text(3)})
        else:
            found.append({"context": text(7), "continuation": text(1)})
        if kind != "context":
            choices = found[-1].get("choices", [0, 1])
            found[-1]["gold"] = rng.randrange(len(choices))
    return found


def part_of(given: list[dict[str, Any]]) -> Part:
    names = {name: None for row in given for name in row}
    return Part("x", {name: [row.get(name) for row in given] for name in names}, {})


def tokenizer_of(start: bool) -> Any:
    """The embedded tokenizer, which may put a start token before every text."""
    tokenizer: Any = AutoTokenizer.from_pretrained(BUILTIN["builtin:tiny"])
    if start:
        token = tokenizer.convert_ids_to_tokens(7)
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{token} $A", special_tokens=[(token, 7)]
        )
    return tokenizer


def task_of(
    asked: list[Question], tokenizer: Any, most: int = 64, metric: str | None = None
) -> MultipleChoice:
    start = start_of_sequences(tokenizer, "auto")
    return MultipleChoice("x", encoded_questions("x", asked, tokenizer, most, start), metric=metric)


def by_hand(model: Any, tokenizer: Any, question: Question) -> list[tuple[float, bool]]:
    """Log-likelihoods and greedy matches by stock transformers, a choice at a time."""
    found = []
    for context, answer in question.choices:
        before = tokenizer(context)["input_ids"]
        whole = tokenizer(f"{context} {answer}")["input_ids"]
        with torch.inference_mode():
            logits = model(torch.tensor([whole])).logits[0].float().log_softmax(-1)
        each = [
            (logits[i - 1, whole[i]], logits[i - 1].argmax())
            for i in range(len(before), len(whole))
        ]
        greedy = [int(top) for _, top in each] == whole[len(before) :]
        found.append((float(sum(log for log, _ in each)), greedy))
    return found


def with_greedy_answer(model: Any, tokenizer: Any) -> dict[str, Any]:
    """A row without alternatives whose answer is the likeliest next token."""
    rng = random.Random(8)
    for _ in range(2000):
        context = " ".join(rng.choices(WORDS, k=rng.randint(1, 9)))
        with torch.inference_mode():
            token = int(
                model(torch.tensor([tokenizer(context)["input_ids"]])).logits[0, -1].argmax()
            )
        answer = tokenizer.decode([token])
        both = tokenizer(f"{context}{answer}")["input_ids"]
        if answer[:1] == " " and answer.strip() and both[-1] == token:
            return {"context": context, "continuation": answer[1:]}
    raise AssertionError("no context has such an answer")


@pytest.mark.parametrize("start", [False, True])
@pytest.mark.parametrize("kind", ["query", "options", "context"])
def test_log_likelihoods_and_decisions_are_lm_evals(kind: str, start: bool) -> None:
    pytest.importorskip("lm_eval", reason="lm-eval is not installed: pip install 'sos_deap[eval]'")
    from lm_eval import simple_evaluate
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from sos_deap.harness import checked_harness, task_config

    checked_harness()
    model, tokenizer = small_llama(), tokenizer_of(start)
    given = rows(12, kind)
    if kind == "context":
        given[5] = with_greedy_answer(model, tokenizer)
    asked = questions(part_of(given))
    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=5)
    other = ConfigurableTask(config=task_config("x", asked))
    manager = TaskManager(include_defaults=False)
    found = simple_evaluate(harness, tasks=[other], bootstrap_iters=10, task_manager=manager)
    samples = sorted(found["samples"]["x"], key=lambda sample: int(sample["doc_id"]))

    task = task_of(asked, tokenizer)
    with torch.inference_mode():
        logs, greedy = task.likelihoods(model, slice(0, 12))
        each = task.each(model, slice(0, 12))[0].tolist()
    for place, number in enumerate(task.order):
        sample = samples[number]
        expected = [response[0] for response in sample["resps"]]
        choices = len(asked[number].choices)
        assert len(expected) == choices
        assert logs[0, place, :choices].tolist() == pytest.approx(
            [e[0] for e in expected], abs=1e-4
        )
        norm, plain, nats, count = each[place]
        assert count == 1 and plain == float(sample["acc"])
        if kind == "query":
            assert norm == sample["acc_norm"]
        if kind == "context":
            assert bool(greedy[0, place, 0]) == expected[0][1] == norm
            assert nats == pytest.approx(-sample["perplexity"], abs=1e-4)
    sums = [sum(column) for column in zip(*each, strict=True)]
    metrics, results = task.metrics(sums), found["results"]["x"]
    assert metrics["accuracy"] == pytest.approx(results["acc,none"])
    if kind == "context":
        assert 0 < metrics["accuracy"] < 1
        assert metrics["answer_perplexity"] == pytest.approx(results["perplexity,none"], rel=1e-4)
    else:
        assert task.chance == pytest.approx(sum(1 / len(q.choices) for q in asked) / 12)


@pytest.mark.parametrize("batching", ["masked", "shared"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_batched_sub_models_are_the_sliced_ones(family: str, batching: str) -> None:
    """Against stock transformers on the sliced model, a choice at a time, metrics by hand."""
    model, tokenizer = build(family, vocab_size=2048), tokenizer_of(True)
    asked = questions(part_of(rows(5, "query") + rows(3, "options") + rows(3, "context")))
    several = [[int(random.random() < 0.6) for _ in range(12)] for _ in range(3)]
    wanted = [expected(prune(model, genes), tokenizer, asked) for genes in several]
    for metric in MultipleChoice.METRICS:
        task = task_of(asked, tokenizer, metric=metric)
        found = Evaluator(model, task, batch_tokens=400, batching=batching).metrics(several)
        assert found == pytest.approx([values[metric] for values in wanted], rel=1e-4)


def expected(model: Any, tokenizer: Any, asked: list[Question]) -> dict[str, float]:
    norm = plain = nats = 0.0
    for question in asked:
        found = by_hand(model, tokenizer, question)
        logs = [log for log, _ in found]
        if len(logs) == 1:
            norm, plain, nats = norm + found[0][1], plain + found[0][1], nats - logs[0]
            continue
        lengths = [len(answer) for _, answer in question.choices]
        each = [log / length for log, length in zip(logs, lengths, strict=True)]
        norm += max(range(len(each)), key=each.__getitem__) == question.gold
        plain += max(range(len(logs)), key=logs.__getitem__) == question.gold
        mean = sum(lengths) / len(lengths)
        nats += math.log(sum(math.exp(mean * e) for e in each)) - mean * each[question.gold]
    count = len(asked)
    values = (norm / count, plain / count, math.exp(nats / count))
    return dict(zip(MultipleChoice.METRICS, values, strict=True))


def test_choices_share_the_rows_that_they_begin_with() -> None:
    tokenizer = tokenizer_of(True)
    given = [{"query": "is it a list", "choices": ["no", "value", "no value"], "gold": 0}]
    asked = questions(part_of(given))
    (example,) = encoded_questions("x", asked, tokenizer, 64, start_of_sequences(tokenizer, "auto"))
    context = tokenizer("is it a list")["input_ids"]
    assert context[0] == 7
    # Only the last answer is read, as far as its last token.
    assert example.rows == [tokenizer("is it a list no value")["input_ids"][:-1]]
    assert {choice.start for choice in example.choices} == {len(context) - 1}
    assert example.padded == task_of(asked, tokenizer).tokens


def test_long_contexts_lose_tokens_after_the_start_token() -> None:
    tokenizer = tokenizer_of(True)
    given = [{"context": "list value module of the object " * 9, "continuation": "error value"}]
    asked = questions(part_of(given))
    (example,) = encoded_questions("x", asked, tokenizer, 12, start_of_sequences(tokenizer, "auto"))
    whole = tokenizer(f"{given[0]['context'].rstrip()} error value")["input_ids"]
    assert example.rows == [[7, *whole[-12:-1]]]
    assert example.choices[0].tokens == whole[example.choices[0].start - 12 :]
    with pytest.raises(
        InputError, match=r"x has an answer of \d+ tokens, and the model reads 1 at"
    ):
        encoded_questions("x", asked, tokenizer, 1, start_of_sequences(tokenizer, "auto"))


def test_prompts() -> None:
    ask = {"query": "Question: why?\n", "choices": ["a", "b"], "gold": 1}
    plain = {"query": "it is", "choices": ["a", "b"], "gold": 1}
    first, second = questions(part_of([ask, plain]))
    assert first.contexts == ("Question: why?\nAnswer:",)
    assert second.choices == [("it is", "a"), ("it is", "b")]
    (other,) = questions(part_of([ask]), prompt="{text} So:\n")
    assert other.contexts == ("Question: why? So:\n",)
    tokenizer = tokenizer_of(False)
    (example,) = encoded_questions(
        "x", [other], tokenizer, 64, start_of_sequences(tokenizer, "auto")
    )
    whole = tokenizer("Question: why? So:\na")["input_ids"]
    assert [*example.rows[0], example.choices[0].tokens[-1]] == whole


def test_a_model_that_computes_nan_has_no_metric() -> None:
    model = small_llama()
    task = task_of(questions(part_of(rows(4, "query"))), tokenizer_of(False))
    with torch.inference_mode():
        model.lm_head.weight[3] = math.nan
        assert task.score(model, slice(0, 4), 1)[0, :3].isnan().all()


def test_the_loss_is_what_importances_derive() -> None:
    model = small_llama()
    task = task_of(questions(part_of(rows(4, "query") + rows(2, "context"))), tokenizer_of(False))
    evaluator = Evaluator(model, task)
    perplexity = evaluator.metrics_of(model, task)["answer_perplexity"]
    loss = task.loss(model, slice(0, 6))
    assert loss.requires_grad and math.exp(float(loss.detach())) == pytest.approx(perplexity)
    assert all(value > 0 for value in evaluator.importance("taylor"))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a"}, "x has the columns text: a question needs query.choices.gold or con"),
        ({"query": "a", "choices": ["b"]}, "x has choices, query in row 0: a question needs"),
        (
            {"query": "a", "choices": [], "gold": 0},
            r"x has \[\] in row 0 of its column choices: ex",
        ),
        ({"query": "a", "choices": "bc", "gold": 0}, "x has 'bc' in row 0 of its column choices"),
        (
            {"query": 3, "choices": ["b"], "gold": 0},
            "x has 3 in row 0 of its column query: expecte",
        ),
        ({"query": "a", "choices": ["b", " "], "gold": 0}, "expected a list of texts, not empty"),
        ({"query": "a", "choices": ["b", "c"], "gold": 2}, "x has 2 in row 0 of its column gold"),
        (
            {"query": "a", "choices": ["b", "c"], "gold": True},
            "x has True in row 0 of its column g",
        ),
        ({"query": "a", "choices": ["b", "c"], "gold": -1}, "index of one of its 2 choices"),
    ],
)
def test_rows_of_another_format(row: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        questions(part_of([row]))


def test_a_run_reports_points_and_answers(
    tmp_path: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from sos_deap.run import main

    file = tmp_path / "asked.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows(40, "query")))
    flags = [
        *("best", f"--model={model_folder}", f"--dataset={file}", "--task=multiple-choice"),
        *("--samples=8", "--max_evaluations=12", "--channel_blocks=4", "--max_sparsity=0.1"),
        *("--validation_samples=4", "--finalists=2", "--refit_samples=6"),
        f"--output_dir={tmp_path / 'run'}",
    ]
    assert main(flags) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["data"]["calibration"]["chance"] == pytest.approx(0.33, abs=0.1)
    assert next(iter(result["best"]["heldout"])) == "answer_perplexity"
    assert set(result["best"]["heldout"]) == set(MultipleChoice.METRICS)
    change = result["change"]["heldout"]
    assert {name: one["kind"] for name, one in change.items()} == {
        "answer_perplexity": "percent",
        "accuracy_norm": "points",
        "accuracy": "points",
    }
    assert change["accuracy"]["low"] <= change["accuracy"]["high"]
    assert "points" in (tmp_path / "run" / "report.html").read_text()


def test_an_encoder_cannot_choose(tmp_path: Path) -> None:
    build("bert", auto=AutoModelForMaskedLM, vocab_size=2048).save_pretrained(tmp_path)
    tokenizer_of(False).save_pretrained(tmp_path)
    file = tmp_path / "asked.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows(4, "query")))
    with pytest.raises(InputError, match="a bert encoder has none: give a causal language model"):
        Evaluator.from_pretrained(str(tmp_path), dataset=str(file), task="multiple-choice")
