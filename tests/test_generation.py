"""Summarization by batched sub-models, compared with sliced models on one text at a time."""

from __future__ import annotations

import copy
import random
import sys
from typing import Any

import pytest
import sacrebleu
import torch
from rouge_score import rouge_scorer
from tokenizers.processors import TemplateProcessing
from transformers import AutoModel, AutoTokenizer, ByT5Tokenizer

from sos_deap import Evaluator, InputError, head_map, prune
from sos_deap.models.sources import BUILTIN
from sos_deap.tasks.data.encoded import encode
from sos_deap.tasks.generation import Summarization
from sos_deap.tasks.texts import TextMetrics, fit_prompt
from tests.tiny import build

TEXTS = ["return a list of values", "raise an error", "the module has a class with a value in it"]
REFERENCES = ["a list", "the error is raised", "module with a class"]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(BUILTIN["builtin:tiny"])


def writer(family: str) -> Any:
    return build(family, vocab_size=2048, pad_token_id=0, eos_token_id=1, forced_eos_token_id=None)


def chromosomes(genes: int, count: int) -> list[list[int]]:
    rng = random.Random(4)
    return [[1] * genes] + [[int(rng.random() < 0.7) for _ in range(genes)] for _ in range(count)]


@pytest.mark.parametrize("family", ["bart", "gpt2", "llama"])
@pytest.mark.parametrize("beams", [1, 2])
def test_sub_models_write_together_what_sliced_models_write_alone(
    family: str, beams: int, tokenizer: Any
) -> None:
    model = writer(family)
    causal = not model.config.is_encoder_decoder
    prompts = encode("x", [(text,) for text in TEXTS], tokenizer, 40, 0, left=causal)
    task = Summarization(
        prompts, REFERENCES, tokenizer, TextMetrics(), max_new_tokens=8, num_beams=beams
    )
    several = chromosomes(len(head_map(model)), 3)
    evaluator = Evaluator(model, task, batch_tokens=10**5)
    found = evaluator.metrics(several)
    rouge = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
    for genes, metric in zip(several, found, strict=True):
        pruned: Any = prune(model, genes)
        scores = []
        for text, reference in zip(TEXTS, REFERENCES, strict=True):
            batch = tokenizer(text, return_tensors="pt")
            with torch.inference_mode():
                written = pruned.generate(
                    **batch, max_new_tokens=8, do_sample=False, num_beams=beams, pad_token_id=0
                )[0]
            new = written[batch["input_ids"].shape[1] :] if causal else written
            said = tokenizer.decode(new, skip_special_tokens=True)
            scores.append(rouge.score(reference, said)["rougeL"].fmeasure)
        assert metric == pytest.approx(sum(scores) / 3)
    # All share the forward passes: no more of them than the slowest takes alone.
    passes = list[int]()
    handle = model.register_forward_pre_hook(lambda *_: passes.append(1))
    evaluator = Evaluator(model, task, batch_tokens=10**5)
    evaluator.metrics(several)
    handle.remove()
    assert len(passes) <= 8
    # However few fit into a pass.
    assert Evaluator(model, task, batch_tokens=1).metrics(several) == pytest.approx(found)


def test_metrics_are_those_of_the_packages() -> None:
    rng = random.Random(6)
    words = ["the", "cat", "sat", "on", "a", "mat", "dogs", "running", "ran", "today"]
    texts, references = (
        [" ".join(rng.choices(words, k=rng.randint(4, 12))) for _ in range(12)] for _ in range(2)
    )
    metrics = TextMetrics()
    parts = [metrics.sums(texts[i:j], references[i:j]) for i, j in ((0, 5), (5, 12))]
    found = metrics.metrics([sum(pair) for pair in zip(*parts, strict=True)])
    assert list(found) == list(metrics.names)
    assert found["bleu"] == pytest.approx(sacrebleu.corpus_bleu(texts, [references]).score)
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    scores = [scorer.score(r, t) for t, r in zip(texts, references, strict=True)]
    for kind in ("rouge1", "rouge2", "rougeL"):
        for name, attribute in (("f1", "fmeasure"), ("precision", "precision")):
            mean = sum(getattr(score[kind], attribute) for score in scores) / 12
            assert found[f"{kind}_{name}"] == pytest.approx(mean)


def test_a_text_equal_to_its_reference_and_an_empty_one() -> None:
    metrics = TextMetrics()
    same = metrics.metrics(metrics.sums(["a cat sat on the mat"], ["a cat sat on the mat"]))
    assert same == {**dict.fromkeys(metrics.names, 1.0), "bleu": pytest.approx(100)}
    silent = metrics.metrics(metrics.sums([""], ["a cat sat on the mat"]))
    assert silent == dict.fromkeys(metrics.names, 0.0)


def test_bertscore_precision_by_hand(tokenizer: Any) -> None:
    """Each token is matched with the most similar token of the reference, special ones excluded."""
    encoder = build("bert", auto=AutoModel, vocab_size=2048)
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|end|> $A <|end|>", special_tokens=[("<|end|>", 0)]
    )
    metrics = TextMetrics((encoder, tokenizer))
    assert metrics.names[0] == "bertscore_precision"
    expected = []
    for text, reference in zip(TEXTS, REFERENCES, strict=True):
        vectors = []
        for string in (text, reference):
            with torch.inference_mode():
                states = encoder(**tokenizer(string, return_tensors="pt")).last_hidden_state[0]
            vectors.append(torch.nn.functional.normalize(states[1:-1], dim=-1))
        expected.append(float((vectors[0] @ vectors[1].T).max(1).values.mean()))
    found = metrics.metrics(metrics.sums(TEXTS, REFERENCES))
    assert found["bertscore_precision"] == pytest.approx(sum(expected) / 3, rel=1e-5)
    with_silence = metrics.metrics(metrics.sums([*TEXTS, " "], [*REFERENCES, "a list"]))
    assert with_silence["bertscore_precision"] == pytest.approx(sum(expected) / 4, rel=1e-5)


def test_a_prompt_keeps_its_end_however_long_the_text(tokenizer: Any) -> None:
    prompt = "Read: {text}\nTL;DR:"
    short = fit_prompt("a list", tokenizer, prompt, 60)
    assert short == "Read: a list\nTL;DR:"
    text = " ".join(f"value {i}" for i in range(200))
    cut = fit_prompt(text, tokenizer, prompt, 60)
    assert cut.startswith("Read: value 0 value 1 ") and cut.endswith("\nTL;DR:")
    assert 50 <= len(tokenizer(cut)["input_ids"]) <= 60
    assert cut.removeprefix("Read: ").removesuffix("\nTL;DR:") in text
    with pytest.raises(InputError, match=r"no text fits into 12 tokens with the prompt"):
        fit_prompt(text, tokenizer, prompt, 12)


def test_the_beginning_of_a_text_is_kept_whatever_the_tokenizer(tokenizer: Any) -> None:
    """A tokenizer that truncates on the left, and one of bytes without offsets."""
    text, prompt = "the value of é " * 30, "Read: {text}\nTL;DR:"
    left = copy.deepcopy(tokenizer)
    left.truncation_side = "left"
    assert fit_prompt(text, left, prompt, 60) == fit_prompt(text, tokenizer, prompt, 60)
    bytewise = ByT5Tokenizer()
    cut = fit_prompt(text, bytewise, prompt, 60)
    room = 60 - 4 - len(b"Read: \nTL;DR:") - 1  # the end token is one too
    assert cut == f"Read: {text.encode()[:room].decode(errors='ignore')}\nTL;DR:"
    assert fit_prompt("é", bytewise, prompt, 60) == "Read: é\nTL;DR:"


def test_a_missing_package_is_named(monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(InputError, match=r"needs rouge_score: pip install 'sos_deap\[summariz"):
        TextMetrics()
