"""Classification by batched sub-models, compared with sliced models on one text at a time."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from torchmetrics.functional.classification import multilabel_f1_score
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from sos_deap import Evaluator, InputError, head_map, masked, prune
from sos_deap.models.sources import BUILTIN
from sos_deap.quality import quality
from sos_deap.search.chromosome import WORST_FITNESS
from sos_deap.tasks.class_divergence import ClassDivergence
from sos_deap.tasks.classification import Accuracy, MultiLabel
from sos_deap.tasks.data.encoded import Encoded, encode
from sos_deap.tasks.generation import greedy
from tests.tiny import VOCABULARY, build

TEXTS = [
    ("a list of values",),
    ("raise",),
    ("the value of an object in the module " * 3,),
    ("x y",),
]
FAMILIES = ("bert", "distilbert", "llama", "modernbert", "roberta")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(BUILTIN["builtin:tiny"])


def classifier(family: str, labels: int = 3) -> Any:
    auto = AutoModelForSequenceClassification
    return build(family, auto=auto, num_labels=labels, vocab_size=2048, pad_token_id=0)


def chromosomes(genes: int, count: int) -> list[list[int]]:
    rng = random.Random(4)
    return [[1] * genes, [0] * genes] + [
        [int(rng.random() < 0.6) for _ in range(genes)] for _ in range(count)
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_batched_sub_models_give_every_example_the_sliced_models_label(
    family: str, tokenizer: Any
) -> None:
    model = classifier(family)
    rng = random.Random(5)
    words = ["return", "list", "value", "module", "the", "class", "error", "if"]
    texts = [(" ".join(rng.choices(words, k=rng.randint(1, 30))),) for _ in range(40)]
    examples = encode("x", texts, tokenizer, 48, 0)
    task = Accuracy(examples, torch.zeros(40, dtype=torch.long))
    several = chromosomes(len(head_map(model)), 5)
    with torch.inference_mode(), masked(model, several):
        together = task.logits(model, slice(0, 40), len(several)).argmax(-1)
    for genes, labels in zip(several, together, strict=True):
        pruned = prune(model, genes)
        with torch.inference_mode():
            alone = [
                int(pruned(**tokenizer(text, return_tensors="pt")).logits.argmax())
                for (text,) in texts
            ]
        assert [alone[i] for i in examples.order] == labels.tolist()
    # Hence the accuracy is the same for every batch.
    targets = torch.tensor([rng.randrange(3) for _ in range(40)])
    task = Accuracy(examples, targets)
    right = (together == targets[examples.order]).sum(1)
    for tokens in (1, 100, 10**5):
        found = Evaluator(model, task, batch_tokens=tokens).metrics(several)
        assert found == pytest.approx((right / 40).tolist())


def test_a_padding_token_of_number_0_is_one(tmp_path: Path, tokenizer: Any) -> None:
    """Against stock transformers, a text at a time; every text ends with the end token."""
    tokenizer = AutoTokenizer.from_pretrained(BUILTIN["builtin:tiny"])
    end = tokenizer.convert_ids_to_tokens(7)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"$A {end}", special_tokens=[(end, 7)]
    )
    tokenizer.eos_token = end
    tokenizer.save_pretrained(tmp_path)
    model = classifier("llama", labels=2)
    model.config.pad_token_id = None
    model.save_pretrained(tmp_path)
    rng = random.Random(6)
    texts = [" ".join(rng.choices(["value", "list", "the", "of"], k=i % 9 + 1)) for i in range(80)]
    rows = [f"{text},{i % 2}\n" for i, text in enumerate(texts)]
    (tmp_path / "rows.csv").write_text("".join(["text,label\n", *rows]))
    evaluator: Any = Evaluator.from_pretrained(
        str(tmp_path), dataset=str(tmp_path / "rows.csv"), task="accuracy", dtype="float32"
    )
    with torch.inference_mode():
        stock = [int(model(**tokenizer(t, return_tensors="pt")).logits.argmax()) for t in texts]
    right = sum(stock[i] == i % 2 for i in range(40, 80))
    assert evaluator.model.config.pad_token_id == tokenizer.pad_token_id == 0
    assert evaluator.metrics_of(evaluator.model, evaluator.heldout) == {"accuracy": right / 40}
    writer = build("llama", pad_token_id=None, eos_token_id=7)
    assert greedy(writer, tokenizer, 3).pad_token_id == 0


def test_metrics_of_several_labels_by_hand() -> None:
    task: Any = MultiLabel(
        Encoded("x", {"attention_mask": torch.ones(4, 2, dtype=torch.long)}, [0, 1, 2, 3], False),
        torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 0], [0, 0, 1]]),
    )
    given = torch.tensor([[1, 0, 1], [0, 0, 0], [0, 1, 1], [1, 0, 0]])
    task.logits = lambda *_: (given * 8.0 - 4.0)[None].repeat(2, 1, 1)
    sums = task.score(None, slice(0, 4), 2)
    for row in sums.tolist():
        # Label 0: right 1, wrong 1, missed 1; label 1: right 1; label 2: right 1, wrong 1, missed 1
        assert task.metrics(row) == {
            "micro_f1": pytest.approx(6 / (6 + 2 + 2)),
            "macro_f1": pytest.approx((1 / 2 + 1 + 1 / 2) / 3),
            "subset_accuracy": 2 / 4,
            "jaccard": pytest.approx((1 + 1 + 1 / 3 + 0) / 4),
        }
    task.threshold = 0.99  # above every probability, sigmoid(4) = 0.982
    found = task.metrics(task.score(None, slice(0, 4), 2)[0].tolist())
    assert found == {"micro_f1": 0, "macro_f1": 0, "subset_accuracy": 1 / 4, "jaccard": 1 / 4}


@pytest.mark.parametrize("average", ["micro", "macro"])
def test_f1_is_torchmetrics(average: Any) -> None:
    logits, labels = torch.randn(50, 7), torch.randint(0, 2, (50, 7))
    everything = Encoded("x", {"attention_mask": torch.ones(50, 1)}, list(range(50)), False)
    task: Any = MultiLabel(everything, labels, threshold=0.3, metric=f"{average}_f1")
    task.logits = lambda _, examples, __: logits[examples][None]
    sums = task.score(None, slice(0, 20), 1) + task.score(None, slice(20, 50), 1)
    expected = multilabel_f1_score(logits.sigmoid(), labels, 7, threshold=0.3, average=average)
    assert task.metrics(sums[0].tolist())[task.name] == pytest.approx(float(expected))


def test_several_labels_on_sub_models(tokenizer: Any) -> None:
    model = classifier("roberta", labels=4)
    model.config.problem_type = "multi_label_classification"
    labels = torch.randint(0, 2, (4, 4))
    task = MultiLabel(encode("x", TEXTS, tokenizer, 48, 0), labels, metric="jaccard")
    several = chromosomes(len(head_map(model)), 4)
    found = Evaluator(model, task, batch_tokens=64).metrics(several)
    for genes, jaccard in zip(several, found, strict=True):
        pruned, total = prune(model, genes), 0.0
        for (text,), row in zip(TEXTS, labels, strict=True):
            with torch.inference_mode():
                logits = pruned(**tokenizer(text, return_tensors="pt")).logits[0]
            given = {i for i, value in enumerate(logits) if value > 0}
            right = {i for i, value in enumerate(row) if value}
            total += len(given & right) / len(given | right) if given | right else 1
        assert jaccard == pytest.approx(total / 4)


@pytest.mark.parametrize("kind", [Accuracy, MultiLabel])
def test_a_broken_sub_model_has_no_metric(kind: Any, tokenizer: Any) -> None:
    model = classifier("bert")
    layer: Any = model.bert.encoder.layer[1].attention
    with torch.no_grad():
        layer.output.dense.weight[:, :8] = math.nan
    labels = torch.randint(0, 2, (4, 3) if kind is MultiLabel else (4,))
    evaluator = Evaluator(model, kind(encode("x", TEXTS, tokenizer, 48, 0), labels))
    assert evaluator([1] * 12) == (WORST_FITNESS,)
    assert evaluator.accounting.non_finite == 1


def test_examples_are_padded_no_more_than_they_need(tokenizer: Any) -> None:
    for left in (False, True):
        examples = encode("x", TEXTS, tokenizer, 20, 7, left=left)
        assert examples.order[0] == 2 and examples.lengths.tolist()[0] == 20  # the longest, cut
        batch = examples.batch(slice(2, 4), 3)
        short = [tokenizer(TEXTS[i][0])["input_ids"] for i in examples.order[2:]]
        width = max(map(len, short))
        assert batch["input_ids"].shape == (6, width)
        for row, mask, ids in zip(
            batch["input_ids"].tolist(), batch["attention_mask"].tolist(), short * 3, strict=True
        ):
            fill = width - len(ids)
            assert row == ([7] * fill + ids if left else ids + [7] * fill)
            assert mask == ([0] * fill + [1] * len(ids) if left else [1] * len(ids) + [0] * fill)


def test_a_text_without_a_token(tokenizer: Any) -> None:
    with pytest.raises(InputError, match=r"x has '' as a text, of which the tokenizer makes no"):
        encode("x", [("a list",), ("",)], tokenizer, 48, 0)


def test_pairs_are_read_as_pairs() -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(BUILTIN["builtin:tiny"])
    examples = encode("x", [("a list", "the module")], tokenizer, 48, 0)
    expected = tokenizer("a list", "the module")["input_ids"]
    assert examples.inputs["input_ids"].tolist() == [expected]
    assert examples.describe()["tokens"] == len(expected)


def test_an_unknown_metric() -> None:
    examples = Encoded("x", {"attention_mask": torch.ones(1, 1)}, [0], False)
    with pytest.raises(InputError, match="unknown metric of this task 'micro': did you mean 'mic"):
        MultiLabel(examples, torch.ones(1, VOCABULARY), metric="micro")


@pytest.mark.parametrize("kind", [Accuracy, MultiLabel])
def test_divergence_from_the_dense_classifier(kind: Any, tokenizer: Any) -> None:
    """Against torch's distributions on the sliced model, one text at a time."""
    model = classifier("bert")
    if kind is MultiLabel:
        model.config.problem_type = "multi_label_classification"
    labels = torch.randint(0, 2, (4, 3) if kind is MultiLabel else (4,))
    task = kind(encode("x", TEXTS, tokenizer, 48, 0), labels)
    several = chromosomes(len(head_map(model)), 4)
    divergence = ClassDivergence(task, model)
    evaluator = Evaluator(model, divergence, batch_tokens=64)
    found = evaluator.metrics(several)
    assert found[0] == pytest.approx(0, abs=1e-7)

    def predicted(one: Any, text: str) -> Any:
        with torch.inference_mode():
            logits = one(**tokenizer(text, return_tensors="pt")).logits[0]
        if kind is Accuracy:
            return torch.distributions.Categorical(logits=logits)
        each = torch.distributions.Bernoulli(logits=logits)
        return torch.distributions.Independent(each, 1)

    for genes, metric in zip(several[1:], found[1:], strict=True):
        pruned = prune(model, genes)
        each = [
            float(torch.distributions.kl_divergence(predicted(model, t), predicted(pruned, t)))
            for (t,) in TEXTS
        ]
        assert metric == pytest.approx(sum(each) / 4, rel=1e-4)
        others = evaluator.metrics_of(pruned, divergence)
        assert others.pop("kl") == pytest.approx(metric, rel=1e-4)
        assert others == evaluator.metrics_of(pruned, task)
    reference = divergence.metrics(divergence.reference_sums.sum(0).tolist())
    assert reference == {"kl": 0.0, **evaluator.metrics_of(model, task)}


def test_the_metric_of_a_classifier_s_run_may_be_its_divergence(tmp_path: Path) -> None:
    model = classifier("bert", labels=2)
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(BUILTIN["builtin:tiny"]).save_pretrained(tmp_path)
    rows = [f"{'value ' * (i % 7 + 1)}list {i},{i % 2}\n" for i in range(80)]
    (tmp_path / "rows.csv").write_text("".join(["text,label\n", *rows]))
    settings: Any = {"dataset": str(tmp_path / "rows.csv"), "dtype": "float32"}
    evaluator = Evaluator.from_pretrained(str(tmp_path), metric="kl", **settings)
    assert not evaluator.task.greater_is_better
    assert list(quality(evaluator, evaluator.model).metrics["heldout"]) == ["kl", "accuracy"]
    with pytest.raises(InputError, match="'f1': known are accuracy, kl"):
        Evaluator.from_pretrained(str(tmp_path), metric="f1", **settings)
