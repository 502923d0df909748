"""The divergence on the dense model's summaries, compared with sliced models one text at a time."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from sos_deap import Evaluator, gene_map, prune, refit
from sos_deap.models.sources import BUILTIN
from sos_deap.quality import quality
from sos_deap.tasks.data.encoded import encode
from sos_deap.tasks.generation import Summarization
from sos_deap.tasks.logits import MOST_LOGITS
from sos_deap.tasks.summary_divergence import DivergenceAndTexts, SummaryDivergence
from sos_deap.tasks.texts import TextMetrics
from tests.tiny import build

TEXTS = ["return a list of values", "raise an error", "the module has a class with a value in it"]
REFERENCES = ["a list", "the error is raised", "module with a class"]
FAMILIES = ("bart", "gpt2", "llama", "pegasus", "t5")
VOCABULARY, NEW = 2048, 8
# T5 cannot be sliced, so its genes have no parameters to count.
GENES: dict[str, Any] = {"genes": "heads+channels", "channel_blocks": 4, "sparsity_of": "genes"}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(BUILTIN["builtin:tiny"])


def writer(family: str, tokenizer: Any) -> Any:
    """A tiny random model, of which one summary at least ends early."""
    model = build(family, vocab_size=VOCABULARY, pad_token_id=0, eos_token_id=1)
    settings = model.generation_config
    settings.forced_eos_token_id, settings.decoder_start_token_id = None, 2
    new = [written(model, tokenizer, text)[1][0, -NEW:].tolist() for text in TEXTS]
    # The token that is first written as late as possible, but before the last place.
    places = {token: row.index(token) for row in new for token in row if token != row[-1]}
    settings.eos_token_id = max(places, key=places.__getitem__, default=new[0][0])
    return model


def summarization(model: Any, tokenizer: Any, beams: int = 1) -> Summarization:
    causal = not model.config.is_encoder_decoder
    prompts = encode("x", [(text,) for text in TEXTS], tokenizer, 40, 0, left=causal)
    metrics = TextMetrics()
    return Summarization(
        prompts, REFERENCES, tokenizer, metrics, max_new_tokens=NEW, num_beams=beams
    )


def chromosomes(genes: int, count: int) -> list[list[int]]:
    rng = random.Random(4)
    return [[1] * genes] + [[int(rng.random() < 0.7) for _ in range(genes)] for _ in range(count)]


def written(model: Any, tokenizer: Any, text: str, beams: int = 1) -> tuple[dict[str, Any], Any]:
    """The tokenized text, and all tokens of the dense model's summary, the first ones included."""
    batch = tokenizer(text, return_tensors="pt")
    with torch.inference_mode():
        tokens = model.generate(
            **batch, max_new_tokens=NEW, do_sample=False, num_beams=beams, pad_token_id=0
        )
    return dict(batch), tokens


def predicted(model: Any, batch: dict[str, Any], tokens: Any) -> torch.Tensor:
    """Log-probabilities at every token of a summary, (tokens, vocabulary)."""
    with torch.inference_mode():
        if model.config.is_encoder_decoder:
            logits = model(**batch, decoder_input_ids=tokens[:, :-1]).logits[0]
        else:
            logits = model(tokens[:, :-1]).logits[0, batch["input_ids"].shape[1] - 1 :]
    return torch.log_softmax(logits.double(), dim=-1)


def by_hand(model: Any, pruned: Any, tokenizer: Any, top_k: int, beams: int = 1) -> float:
    """The mean over all tokens of all summaries of the divergence over the partition."""
    found: list[float] = []
    for text in TEXTS:
        batch, tokens = written(model, tokenizer, text, beams)
        dense, other = (predicted(one, batch, tokens).exp() for one in (model, pruned))
        top = dense.topk(top_k).indices
        p, q = (
            torch.cat((one.gather(1, top), 1 - one.gather(1, top).sum(1, keepdim=True)), dim=1)
            if top_k < VOCABULARY
            else one
            for one in (dense, other)
        )
        found += (p * (p.log() - q.log())).sum(1).tolist()
    return sum(found) / len(found)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("top_k", "beams"), [(VOCABULARY, 1), (5, 2)])
def test_the_divergence_of_sliced_models_by_hand(
    family: str, top_k: int, beams: int, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = writer(family, tokenizer)
    task = SummaryDivergence(summarization(model, tokenizer, beams), model, top_k)
    genes = gene_map(model, "heads+channels", 4)
    several = chromosomes(len(genes), 3)
    evaluator = Evaluator(model, task, **GENES)
    found = evaluator.metrics(several)
    assert found[0] == pytest.approx(0, abs=1e-6)
    layout = "zeroed" if family == "t5" else "sliced"
    for one, metric in zip(several[1:], found[1:], strict=True):
        pruned: Any = prune(model, one, evaluator.gene_map, layout=layout)
        assert metric == pytest.approx(by_hand(model, pruned, tokenizer, top_k, beams), rel=1e-3)
        # The metric of the whole pruned model, with the vocabulary in small tiles.
        with monkeypatch.context() as patch:
            patch.setitem(MOST_LOGITS, "cpu", 3 * VOCABULARY)
            assert evaluator.metrics_of(pruned, task)["kl"] == pytest.approx(metric, rel=1e-4)


@pytest.mark.parametrize("family", ["bart", "llama"])
def test_several_sub_models_in_a_pass_equal_those_alone(family: str, tokenizer: Any) -> None:
    model = writer(family, tokenizer)
    task = SummaryDivergence(summarization(model, tokenizer), model)
    several = chromosomes(len(gene_map(model, "heads+channels", 4)), 5)
    evaluator = Evaluator(model, task, batching="masked", batch_tokens=10**5, **GENES)
    passes = list[int]()
    handle = model.get_decoder().register_forward_pre_hook(lambda *_: passes.append(1))
    alone = [evaluator.metrics([one])[0] for one in several]
    assert len(passes) > len(several)
    evaluator.clear()
    passes.clear()
    together = evaluator.metrics(several)
    handle.remove()
    # The layers once; the head is called with the decoder replaced, which runs no layer.
    assert passes.count(1) < len(several)
    assert together == pytest.approx(alone, rel=1e-4, abs=1e-7)
    shared = Evaluator(model, task, batching="auto", batch_tokens=1, **GENES).metrics(several)
    assert shared == pytest.approx(alone, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("family", ["bart", "gpt2"])
def test_text_metrics_beside_the_divergence(family: str, tokenizer: Any) -> None:
    model = writer(family, tokenizer)
    texts = summarization(model, tokenizer)
    both = DivergenceAndTexts(SummaryDivergence(texts, model))
    evaluator = Evaluator(model, both, heldout=both)
    pruned: Any = prune(model, chromosomes(len(gene_map(model)), 1)[1])
    for one in (model, pruned):
        found = quality(evaluator, one, ["heldout"]).metrics["heldout"]
        assert list(found)[:2] == ["kl", "rougeL_f1"]
        kl = by_hand(model, one, tokenizer, 64)
        assert found.pop("kl") == pytest.approx(kl, rel=1e-3, abs=1e-6)
        assert found == pytest.approx(evaluator.metrics_of(one, texts))


class Stock:
    """The same examples for a refit, one at a time, as stock models read them."""

    one_pass, seqlen = True, 32

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self._examples = [written(model, tokenizer, text) for text in TEXTS]

    def __len__(self) -> int:
        return len(self._examples)

    def score(self, model: Any, examples: slice, sub_models: int) -> None:
        [(batch, tokens)] = self._examples[examples]
        if model.config.is_encoder_decoder:
            model(**batch, decoder_input_ids=tokens[:, :-1])
        else:
            model(tokens[:, :-1])


@pytest.mark.parametrize("family", ["bart", "gpt2"])
def test_a_refit_reads_the_dense_model_s_summaries(family: str, tokenizer: Any) -> None:
    model = writer(family, tokenizer)
    task = SummaryDivergence(summarization(model, tokenizer), model)
    genes = gene_map(model, "heads+channels", 4)
    chromosome = chromosomes(len(genes), 1)[1]
    pruned, expected = (prune(model, chromosome, genes) for _ in range(2))
    fits = refit(model, pruned, task, damping=0.1)
    assert fits and all(fit.error < fit.error_before for fit in fits)
    refit(model, expected, Stock(model, tokenizer), damping=0.1)
    for found, wanted in zip(pruned.parameters(), expected.parameters(), strict=True):
        assert torch.allclose(found, wanted, rtol=1e-3, atol=1e-4)
