"""Perplexity, pseudo-perplexity and divergence, compared with a computation token by token."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForMaskedLM, AutoTokenizer

from sos_deap import Evaluator, InputError, head_map, masked, prune
from sos_deap.models.sources import BUILTIN
from sos_deap.quality import quality
from sos_deap.tasks.data.self_text import sampled_sequences
from sos_deap.tasks.data.sequences import Sequences, checked_seqlen
from sos_deap.tasks.divergence import KL
from sos_deap.tasks.language import Perplexity, PseudoPerplexity
from sos_deap.tasks.logits import logits_at
from tests.conftest import GENES, small_llama
from tests.tiny import VOCABULARY, assert_close, build

ENCODERS = (
    *("bert", "camembert", "deberta-v2", "distilbert", "electra", "modernbert"),
    *("roberta", "xlm-roberta"),
)


def test_a_uniform_model_has_the_vocabulary_s_size_as_perplexity() -> None:
    task = Perplexity(Sequences("x", torch.randint(0, 50, (4, 9))))
    model = build("llama", vocab_size=50, dtype="bfloat16")
    with torch.inference_mode():
        model.lm_head.weight.zero_()
        sums = task.score(model, slice(0, 4), 3)
    assert sums.shape == (3, 2)
    assert sums[:, 1].tolist() == [4 * 8] * 3  # the first token of a sequence is not scored
    assert task.metrics(sums[0].tolist()) == {"perplexity": pytest.approx(50)}


def test_overflow_is_infinite_and_nan_stays() -> None:
    task = Perplexity(Sequences("x", torch.zeros(1, 2, dtype=torch.long)))
    assert task.metrics([1e6, 1.0]) == {"perplexity": math.inf}
    assert math.isnan(task.metrics([math.nan, 1.0])["perplexity"])


def test_seqlen() -> None:
    def model(positions: int, device: str = "cuda") -> Any:
        config = SimpleNamespace(max_position_embeddings=positions)
        place = SimpleNamespace(type=device)
        return SimpleNamespace(config=config, device=place, named_modules=lambda: ())

    assert checked_seqlen(None, model(4096)) == 2048
    assert checked_seqlen(None, model(4096, "cpu")) == 512
    assert checked_seqlen(4096, model(4096)) == 4096
    assert checked_seqlen(None, model(128)) == 128
    with pytest.raises(InputError, match="seqlen is 4097, beyond the model's 4096"):
        checked_seqlen(4097, model(4096))
    with pytest.raises(InputError, match="at least 2 tokens"):
        checked_seqlen(1, model(4096))


@pytest.mark.parametrize("task", ["perplexity", "kl"])
@pytest.mark.parametrize("puts", ["<|end|>", "<|end|> value"])
def test_sequences_begin_as_the_tokenizer_begins_a_text(
    task: str, puts: str, model_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    """Against stock transformers' loss, one sequence at a time."""
    shutil.copytree(model_folder, tmp_path / "model")
    tokenizer: Any = AutoTokenizer.from_pretrained(model_folder)
    start = [tokenizer.convert_tokens_to_ids(token) for token in puts.split()]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{puts} $A", special_tokens=list(zip(puts.split(), start, strict=True))
    )
    tokenizer.save_pretrained(tmp_path / "model")
    text = text_file.read_text()
    half = text[text.find("\n\n", len(text) // 2) :].lstrip("\n")
    ids = tokenizer(half, add_special_tokens=False)["input_ids"]
    own = tokenizer(half)["input_ids"]
    model = small_llama()
    for how, head, tokens in (("auto", start, ids), ("each", start, ids), ("none", [], own)):
        evaluator = Evaluator.from_pretrained(
            str(tmp_path / "model"),
            dataset=str(text_file),
            task=task,
            dtype="float32",
            seqlen=24,
            heldout_samples=10**6,
            start_token=how,
        )
        inner, losses = 24 - len(head), []
        for i in range(0, len(tokens) // inner * inner, inner):
            row = torch.tensor([head + tokens[i : i + inner]])
            labels = row.clone()
            labels[:, : len(head)] = -100
            with torch.inference_mode():
                losses.append(float(model(row, labels=labels).loss))
        heldout: Any = evaluator.heldout
        found = evaluator.metrics_of(evaluator.model, heldout)["perplexity"]
        assert found == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-5)
        assert heldout.describe()["start_token"].startswith("".join(puts.split()))
        with torch.inference_mode():
            loss = float(heldout.loss(evaluator.model, slice(0, len(losses))))
        assert math.exp(loss) == pytest.approx(found, rel=1e-5)


def test_encoders_have_their_own_special_tokens(tmp_path: Path, text_file: Path) -> None:
    build("bert", auto=AutoModelForMaskedLM, vocab_size=2048).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(BUILTIN["builtin:tiny"]).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="start_token is none: each sequence of an encoder has"):
        Evaluator.from_pretrained(str(tmp_path), dataset=str(text_file), start_token="none")


def divergence(dense: Any, pruned: Any, ids: torch.Tensor, top_k: int) -> float:
    """Mean over positions of the divergence over top_k tokens and one bucket, in float64."""
    total = 0.0
    for row in ids:
        with torch.inference_mode():
            p, q = (m(row[None]).logits[0].double().softmax(-1) for m in (dense, pruned))
        for before, after in zip(p, q, strict=True):
            top = before.topk(top_k).indices.tolist()
            buckets = [(float(before[i]), float(after[i])) for i in top]
            buckets.append((1 - sum(b for b, _ in buckets), 1 - sum(a for _, a in buckets)))
            total += sum(b * math.log(b / a) for b, a in buckets if b > 1e-9)
    return total / ids.numel()


@pytest.mark.parametrize("top_k", [1, 16, 2048])
def test_the_divergence_is_that_of_the_sliced_model(top_k: int) -> None:
    model, ids = small_llama(), torch.randint(0, 2048, (3, 10))
    task = KL(Sequences("random", ids), model, top_k)
    evaluator = Evaluator(model, task, "kl", batch_tokens=2 * 3 * 10, max_sparsity=1)
    several = [[1] * 8 + [0] * 4, [1, 0, 1] * 4, [0] * GENES, [1] * GENES]
    expected = [divergence(model, prune(model, genes), ids, top_k) for genes in several]
    assert evaluator.metrics(several) == pytest.approx(expected, rel=1e-4, abs=1e-7)
    assert expected[0] > 1e-4
    assert evaluator(several[0]) == pytest.approx((-math.exp(expected[0]) * 2 / 3,), rel=1e-4)
    perplexity = Evaluator(model, Perplexity(task.sequences)).metric(several[0])
    assert evaluator.metrics_of(prune(model, several[0]), task) == {
        "kl": pytest.approx(expected[0], rel=1e-4),
        "perplexity": pytest.approx(perplexity, rel=1e-5),
        "distillation": pytest.approx((expected[0] + math.log(perplexity)) / 2, rel=1e-5),
    }


def test_the_dense_model_s_metrics_are_known_from_the_reading_of_its_distributions() -> None:
    model, ids = small_llama(), torch.randint(0, 2048, (600, 10))  # two passes
    task = KL(Sequences("random", ids), model)
    perplexity = Evaluator(model, Perplexity(task.sequences)).metric([1] * GENES)
    assert task.reference_sums.shape == (600, 4)
    assert task.metrics(task.reference_sums.sum(0).tolist()) == {
        "kl": 0,
        "perplexity": pytest.approx(perplexity, rel=1e-6),
        "distillation": pytest.approx(math.log(perplexity) / 2, rel=1e-6),
    }


def test_a_dense_model_whose_output_is_not_finite_is_refused() -> None:
    model, ids = small_llama(), torch.randint(0, 2048, (2, 10))
    with torch.no_grad():
        model.model.norm.weight[3] = math.nan
    evaluator = Evaluator(model, KL(Sequences("random", ids), model))
    with pytest.raises(InputError, match=r"kl \(calibration\) is nan: check the model"):
        quality(evaluator, model)


def test_a_coarser_partition_diverges_less() -> None:
    model, ids = small_llama(), torch.randint(0, 2048, (2, 10))
    genes = [[1] * 8 + [0] * 4]
    found = [
        Evaluator(model, KL(Sequences("random", ids), model, k)).metrics(genes)[0]
        for k in (1, 8, 64, 2048)
    ]
    assert found == sorted(found) and found[0] < found[-1]


def test_the_description_of_the_divergence() -> None:
    model = small_llama()
    task = KL(Sequences("random", torch.randint(0, 2048, (2, 10))), model, 10**6, "perplexity")
    assert task.name == "perplexity"
    described = task.describe()
    assert described["top_k"] == 2048 and described["kept_probability"] == pytest.approx(1)
    with pytest.raises(InputError, match="unknown metric of this task 'k': did you mean 'kl'"):
        KL(task.sequences, model, metric="k")


@pytest.mark.parametrize("family", ENCODERS)
def test_logits_at_a_position_are_those_of_the_whole(family: str) -> None:
    model = build(family, auto=AutoModelForMaskedLM)
    ids, positions = torch.randint(1, VOCABULARY, (4, 9)), torch.tensor([0, 3, 8, 8])
    genes = [[1, 0, 1, 1] * (len(head_map(model)) // 4), [1] * len(head_map(model))]
    with torch.inference_mode(), masked(model, genes):
        whole = model(ids).logits
        assert_close(logits_at(model, ids, positions), whole[torch.arange(4), positions])


def test_pseudo_perplexity_masks_one_token_at_a_time() -> None:
    model, mask = build("bert", auto=AutoModelForMaskedLM), 4
    ids = torch.randint(5, VOCABULARY, (2, 7))
    genes = [1, 0, 1, 1] * 3
    pruned = prune(model, genes)
    nats = []
    for row in ids:
        for position in range(1, 6):  # not the special tokens at the ends
            hidden = row.clone()
            hidden[position] = mask
            with torch.inference_mode():
                logs = pruned(hidden[None]).logits[0, position].double().log_softmax(-1)
            nats.append(-float(logs[row[position]]))
    task = PseudoPerplexity(Sequences("x", ids), mask, (1, 1))
    assert len(task) == 10
    for tokens in (7, 3 * 7, 1000):
        evaluator = Evaluator(model, task, batch_tokens=tokens)
        found = evaluator.metrics([genes, [1] * 12])
        assert found[0] == pytest.approx(math.exp(sum(nats) / 10), rel=1e-5)
        assert evaluator.metrics_of(pruned, task) == {"pseudo_perplexity": pytest.approx(found[0])}


def test_generated_text_is_a_sample_of_the_model_s_distribution() -> None:
    """A model with a certain next token, and one with two equally likely next tokens."""
    model = build("llama", bos_token_id=3)
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.model.norm.weight.zero_()
    sample = sampled_sequences(model, "calibration", 40, 20, temperature=1.0, seed=1)
    assert sample.input_ids.shape == (40, 20)
    assert (sample.input_ids[:, 0] == 3).all()
    counts = sample.input_ids[:, 1:].flatten().bincount(minlength=VOCABULARY)
    expected = 40 * 19 / VOCABULARY  # uniform; chi-square with 60 degrees of freedom
    assert float(((counts - expected) ** 2 / expected).sum()) < 100
    state = torch.get_rng_state()
    again = sampled_sequences(model, "calibration", 40, 20, temperature=1.0, seed=1)
    assert torch.equal(again.input_ids, sample.input_ids)
    assert torch.equal(torch.get_rng_state(), state)
    other = sampled_sequences(model, "held-out", 40, 20, temperature=1.0, seed=2)
    assert not torch.equal(other.input_ids, sample.input_ids)
    assert "temperature 1.0, seed 2" in other.split


@pytest.mark.parametrize(
    ("puts", "bos", "start"), [("<|end|> ", 3, 0), ("", 3, 3), ("<|end|> ", None, 0)]
)
def test_generated_text_begins_with_the_start_token(
    puts: str, bos: int | None, start: int, tmp_path: Path
) -> None:
    model = small_llama()
    model.config.bos_token_id = bos
    model.save_pretrained(tmp_path)
    tokenizer: Any = AutoTokenizer.from_pretrained(BUILTIN["builtin:tiny"])
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{puts}$A", special_tokens=[("<|end|>", 0)]
    )
    tokenizer.save_pretrained(tmp_path)
    for how in ("auto", "none"):
        evaluator: Any = Evaluator.from_pretrained(
            str(tmp_path), dataset="builtin:self", seqlen=5, samples=2, start_token=how
        )
        assert evaluator.task.sequences.input_ids[:, 0].tolist() == [start, start]
        described = f"{tokenizer.convert_ids_to_tokens(start)} in each sequence"
        assert evaluator.task.describe()["start_token"] == described


def test_a_low_temperature_is_greedy_and_steps_with_a_cache_are_whole_passes() -> None:
    model = build("llama", bos_token_id=3)
    ids = sampled_sequences(model, "x", 2, 12, temperature=1e-4, seed=0).input_ids
    with torch.inference_mode():
        likeliest = model(ids).logits.argmax(-1)
    assert torch.equal(ids[:, 1:], likeliest[:, :-1])
    with torch.no_grad():
        model.lm_head.weight.fill_(math.nan)
    with pytest.raises(InputError, match="computes no probabilities"):
        sampled_sequences(model, "x", 2, 12, temperature=1.0, seed=0)


@pytest.mark.parametrize("task", ["kl", "perplexity"])
def test_only_calibration_text_is_scored_at_every_so_many_positions(
    task: str, model_folder: Path, text_file: Path
) -> None:
    evaluator: Any = Evaluator.from_pretrained(
        str(model_folder), dataset=str(text_file), task=task, seqlen=16, samples=2,
        validation_samples=2, heldout_samples=2, score_every=4,
    )  # fmt: skip
    assert evaluator.task.describe()["score_every"] == 4
    assert evaluator.task.scored(slice(0, 2)) == 2 * 4  # positions 0, 4, 8 and 12
    for other in (evaluator.heldout, evaluator.validation.task):
        assert "score_every" not in other.describe()
        assert other.scored(slice(0, 2)) == 2 * 15
    with pytest.raises(InputError, match="score_every is 0"):
        Evaluator.from_pretrained(str(model_folder), dataset=str(text_file), score_every=0)
