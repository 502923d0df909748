"""Int8 weights: against stock models whose weights were rounded by hand, and after slicing."""

from __future__ import annotations

import json
import random
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForMaskedLM, AutoTokenizer, LlamaForCausalLM

from benchmarks.gpu import llama_2_7b_config
from sos_deap import Evaluator, InputError, gene_map, load, masked, prune, refit
from sos_deap.__main__ import main
from sos_deap.budget import budget_of
from sos_deap.evaluation.evaluator import from_recipe
from sos_deap.models.identity import fingerprint, state
from sos_deap.models.measure import measure
from sos_deap.models.quantised import quantisation, weight_bytes
from sos_deap.models.refit import consumer_bias
from sos_deap.models.sources import BUILTIN
from sos_deap.tasks.data.sequences import Sequences
from sos_deap.tasks.language import Perplexity
from tests.rows import Batches
from tests.test_budget import filled
from tests.tiny import LAYERS, VOCABULARY, build, chromosomes, inputs, output, random_order

pytest.importorskip("torchao", reason="needs the package torchao")

#: Models by the name of the test: architecture, key/value heads, auto class, whether it slices.
MODELS: dict[str, tuple[str, int | None, Any]] = {
    "llama": ("llama", 2, None),
    "gemma": ("gemma3_text", 1, None),
    "bert": ("bert", None, AutoModelForMaskedLM),
    "phi": ("phi3", None, None),  # fused projections
    "opt": ("opt", None, None),  # biases
}


def rounded(weight: Tensor) -> Tensor:
    """Round each row to 255 steps of its largest value, by hand."""
    scale = weight.abs().amax(1, keepdim=True) / 127.5
    return torch.clamp(torch.round(weight * (1 / scale)), -128, 127) * scale


def both(name: str, folder: Path) -> tuple[Any, Any]:
    """A model with int8 weights, and the same one with the rounded weights in float32."""
    family, kv_heads, auto = MODELS[name]
    plain = build(family, kv_heads, auto)
    plain.save_pretrained(folder)
    int8: Any = load(folder, quantize="int8")
    head = plain.get_output_embeddings()
    for path, module in plain.named_modules():
        same = int8.get_submodule(path)
        if isinstance(module, nn.Linear) and module is not head:
            assert type(same.weight).__name__ == "Int8Tensor", path
            module.weight.data = rounded(module.weight.data)
    return int8, plain


def close(actual: Tensor, expected: Tensor) -> bool:
    return bool((actual - expected).abs().max() <= 1e-5 * expected.abs().max())


@pytest.mark.parametrize("name", MODELS)
def test_masked_sliced_reloaded_and_rounded_by_hand_agree(name: str, tmp_path: Path) -> None:
    int8, plain = both(name, tmp_path / "dense")
    genes = gene_map(int8, "heads+channels", 4, random_order(int8))
    batch = inputs(int8)
    assert close(output(int8, batch), output(plain, batch))
    for number, chromosome in enumerate(chromosomes(len(genes), 1)[1:]):
        with masked(int8, [chromosome], genes):
            together = output(int8, batch)
        sliced = prune(int8, chromosome, genes)
        expected = output(prune(plain, chromosome, genes), batch)
        assert close(together, expected)
        assert close(output(sliced, batch), expected)
        folder = tmp_path / str(number)
        sliced.save_pretrained(folder)
        again = load(folder)
        assert torch.equal(output(again, batch), output(sliced, batch))
        assert weight_bytes(again) == stored_bytes(folder)


def stored_bytes(folder: Path) -> int:
    """The bytes of all tensors in a folder's file."""
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        return sum(file.get_tensor(name).nbytes for name in file.keys())  # noqa: SIM118


def test_the_integers_are_sliced_unchanged_with_their_scales(tmp_path: Path) -> None:
    int8, _ = both("llama", tmp_path)
    sliced: Any = prune(int8, [1, 0, 1, 1] + [0, 0, 1, 1] + [1] * 4)
    before, after = (model.model.layers[1].self_attn for model in (int8, sliced))
    rows = [row for head in (2, 3) for row in range(8 * head, 8 * head + 8)]
    for part in ("qdata", "scale"):
        whole, kept = (getattr(one.q_proj.weight, part) for one in (before, after))
        assert torch.equal(kept, whole[rows])
        whole, kept = (getattr(one.k_proj.weight, part) for one in (before, after))
        assert torch.equal(kept, whole[8:])
    assert torch.equal(after.o_proj.weight.qdata, before.o_proj.weight.qdata[:, rows])
    assert torch.equal(after.o_proj.weight.scale, before.o_proj.weight.scale)


@pytest.mark.parametrize("layout", ["uniform", "zeroed"])
def test_stock_classes_load_the_other_layouts(layout: str, tmp_path: Path) -> None:
    int8, plain = both("llama", tmp_path / "dense")
    genes = gene_map(int8, "groups")
    chromosome = [1, 0, 0, 1, 1, 0]
    smaller = prune(int8, chromosome, genes, layout=layout)
    smaller.save_pretrained(tmp_path / "pruned")
    stock = LlamaForCausalLM.from_pretrained(tmp_path / "pruned").eval()
    batch = inputs(int8)
    assert torch.equal(output(stock, batch), output(smaller, batch))
    assert close(output(stock, batch), output(prune(plain, chromosome, genes), batch))


def test_sharing_and_masks_give_the_same_metrics(tmp_path: Path) -> None:
    int8, plain = both("llama", tmp_path)
    task = Perplexity(Sequences("random", torch.randint(1, VOCABULARY, (3, 16))))
    settings: dict[str, Any] = {"genes": "heads+channels", "channel_blocks": 4}
    settings["channel_order"] = random_order(int8)
    shared, together, by_hand = (
        Evaluator(model, task, batching=batching, **settings)
        for model, batching in ((int8, "shared"), (int8, "masked"), (plain, "masked"))
    )
    found = chromosomes(len(shared.gene_map), 6)[-6:]
    for one, other, third in zip(
        *(made.metrics_on(task, found) for made in (shared, together, by_hand)), strict=True
    ):
        assert one["perplexity"] == pytest.approx(third["perplexity"], rel=1e-5)
        assert other["perplexity"] == pytest.approx(third["perplexity"], rel=1e-5)


@pytest.mark.parametrize("how", ["after", "bias"])
def test_a_refit_is_rounded_to_int8(how: str, tmp_path: Path) -> None:
    int8, plain = both("opt", tmp_path)
    genes = gene_map(int8, "heads")
    chromosome = [1, 1, 1, 1, 1, 0, 1, 0, 1, 1, 1, 1]  # one site, so that rounding has no effect
    smaller = [prune(model, chromosome, genes) for model in (int8, plain)]
    text = Batches(int8)
    fits = [refit(*pair, text, how, 0.01) for pair in zip((int8, plain), smaller, strict=True)]
    assert fits[0][0].error == pytest.approx(fits[1][0].error, rel=1e-3)
    consumers: list[Any] = [model.get_submodule(fits[0][0].consumer) for model in smaller]
    by_hand = rounded(consumers[1].weight.data) if how == "after" else consumers[1].weight
    assert quantisation(consumers[0]) == "int8"
    steps = (consumers[0].weight.dequantize() - by_hand).abs() / consumers[0].weight.scale
    # A step apart where the largest of a row, 127.5 steps, is rounded the other way.
    assert steps.max() < 1.01 and (steps > 0.01).sum() <= (len(steps) if how == "after" else 0)
    biases = [consumer_bias(one) for one in consumers]
    assert biases[0] is not None and biases[1] is not None
    assert torch.allclose(biases[0], biases[1], atol=1e-4)


def test_a_refit_during_the_search_fits_what_is_shipped(tmp_path: Path) -> None:
    int8, plain = both("opt", tmp_path)
    task = Perplexity(Sequences("random", torch.randint(1, VOCABULARY, (6, 16))))
    chromosome = [1, 1, 1, 1, 1, 0, 1, 0, 1, 0, 1, 1]
    found = [
        Evaluator(model, task, refit="during", refit_damping=0.01).metrics_on(task, [chromosome])
        for model in (int8, plain)
    ]
    assert found[0][0]["perplexity"] == pytest.approx(found[1][0]["perplexity"], rel=1e-4)


def test_other_weights_change_fingerprint_and_state(tmp_path: Path) -> None:
    int8, _ = both("llama", tmp_path)
    before = fingerprint(int8), state(int8)
    assert before == (fingerprint(int8), state(int8))
    assert fingerprint(int8, torch.bfloat16) != before[0]  # embeddings and norms
    assert fingerprint(int8.to(torch.bfloat16)) == fingerprint(int8, torch.bfloat16)
    int8.model.layers[0].mlp.up_proj.weight.qdata[0, 0] += 1
    assert fingerprint(int8) != before[0] and state(int8) != before[1]


def test_the_integers_do_not_depend_on_the_dtype(tmp_path: Path) -> None:
    build("llama").save_pretrained(tmp_path)
    half, single = (load(tmp_path, dtype=d, quantize="int8") for d in ("bfloat16", "float32"))
    assert half.dtype == torch.bfloat16
    one: Any
    for one, other in zip(half.parameters(), single.parameters(), strict=True):
        if type(one).__name__ == "Int8Tensor":
            for part in one.__tensor_flatten__()[0]:
                assert torch.equal(getattr(one, part), getattr(other, part))


def test_bytes_of_the_paper_s_largest_model() -> None:
    """Table II, LLaMA-2 7B: 6676.51 and 6042.51 MiB, and the scales of the rows; no weights."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    with torch.device("meta"):
        model: Any = LlamaForCausalLM(llama_2_7b_config())
    quantize_(model.model.layers, Int8WeightOnlyConfig())

    def mebibytes(model: Any) -> float:
        rows = sum(m.out_features for m in model.model.layers.modules() if isinstance(m, nn.Linear))
        scales = rows * (4 + 1)  # a scale and a zero point, which is always 0
        return float(weight_bytes(model, torch.float16) - scales) / 2**20

    assert round(mebibytes(model), 2) == 6676.51
    removed = set(random.sample(range(1024), 317))
    pruned = prune(model, [int(gene not in removed) for gene in range(1024)])
    assert round(mebibytes(pruned), 2) == 6042.51


def test_a_target_of_bytes_counts_int8(tmp_path: Path) -> None:
    int8, _ = both("llama", tmp_path)
    made = Evaluator(
        int8, lambda model: 0.0, genes="heads+channels", channel_blocks=4, sparsity_of="parameters"
    )
    dense = weight_bytes(int8)
    for target in range(dense - 6000, dense - 100, 900):
        budget = budget_of("heads+channels", None, None, target_bytes=str(target))
        bound = budget.bound(made)
        for seed in range(3):
            order = random.Random(seed).sample(range(len(made.gene_map)), len(made.gene_map))
            pruned = prune(int8, filled(made, bound, order), made.gene_map)
            assert weight_bytes(pruned) <= target
    with pytest.raises(InputError, match=f"the dense model has {dense:,} bytes of weights"):
        budget_of("heads", None, None, target_bytes=str(dense)).bound(made)


def test_measured_bytes_are_of_int8(tmp_path: Path) -> None:
    int8, plain = both("llama", tmp_path)
    models = {"dense": plain, "int8": int8}
    row = measure(models, lengths=[8], new_tokens=2, rounds=1, seconds=0)[0]["models"]
    assert row["int8"]["weight_bytes"] == weight_bytes(int8)
    assert row["dense"]["weight_bytes"] == sum(p.nbytes for p in plain.parameters())
    assert row["int8"]["prefill_flops"] == row["dense"]["prefill_flops"] > 0


def test_workers_make_the_same_evaluator(model_folder: Path, text_file: Path) -> None:
    made = Evaluator.from_pretrained(
        str(model_folder), dataset=str(text_file), quantize="int8", samples=2, seqlen=16
    )
    other = from_recipe(made.recipe)
    assert other is not made and quantisation(other.model) == "int8"
    assert other.scope == made.scope  # checked by from_recipe, too
    genes = [1, 0, 1, 1] * 3
    assert other.metrics_on(other.task, [genes]) == made.metrics_on(made.task, [genes])


@pytest.fixture
def small(model_folder: Path, text_file: Path) -> list[str]:
    """Flags of a run of a second or two, on int8 weights."""
    flags = {
        "model": model_folder,
        "dataset": text_file,
        "genes": "heads+channels",
        "quantize": "int8",
        "generations": 2,
        "population_size": 6,
        "samples": 2,
        "seqlen": 32,
        "heldout_samples": 4,
        "device": "cpu",
    }
    return ["run", *(f"--{name}={value}" for name, value in flags.items())]


def test_a_run_writes_int8_or_the_weights_as_stored(
    small: list[str],
    model_folder: Path,
    tmp_path: Path,
    capsys: Any,
) -> None:
    assert main([*small, f"--output_dir={tmp_path / 'int8'}"]) == 0
    assert main([*small, f"--output_dir={tmp_path / 'none'}", "--quantize_output=none"]) == 0
    int8, none = (
        json.loads((tmp_path / name / "result.json").read_text()) for name in ("int8", "none")
    )
    genes = int8["best"]["chromosome"]
    assert genes == none["best"]["chromosome"]
    assert 0 in genes
    assert int8["dtype"] == "float32 with int8 weights"
    assert int8["dense"]["bytes"] == none["dense"]["bytes"] < int8["dense"]["parameters"] * 4
    assert int8["best"]["bytes"] == stored_bytes(tmp_path / "int8" / "pruned")
    assert none["best"]["bytes"] == 4 * none["best"]["parameters"]
    found = json.loads((tmp_path / "int8" / "chromosome.json").read_text())
    assert found["quantize"] == "int8"
    assert found["fingerprint"] == fingerprint(load(model_folder, quantize="int8"))
    assert "- weights: int8" in (tmp_path / "int8" / "pruned" / "README.md").read_text()

    # Slicing the model as stored, by hand.
    plain = load(model_folder)
    mapping = gene_map(plain, "heads+channels", channel_order=found["channel_order"])
    batch = {"input_ids": torch.arange(12)[None]}
    expected = output(prune(plain, genes, mapping), batch)
    assert close(output(load(tmp_path / "none" / "pruned"), batch), expected)

    # The command prune writes the same files, of either kind.
    for name, flags in (("int8", []), ("none", ["--quantize=none"])):
        out = tmp_path / f"again-{name}"
        command = ["prune", str(model_folder), f"--output_dir={out}", *flags]
        assert main([*command, f"--chromosome={tmp_path / 'int8' / 'chromosome.json'}"]) == 0
        first, second = (
            load_file(path / "model.safetensors") for path in (out, tmp_path / name / "pruned")
        )
        assert first.keys() == second.keys()
        assert all(torch.equal(first[part], second[part]) for part in first)
    capsys.readouterr()
    for kind in ("--format=onnx", "--format=gguf"):
        given = ["export", str(tmp_path / "int8" / "pruned"), f"--output={tmp_path / 'x'}", kind]
        assert main(given) == 2
        assert "has int8 weights, which this format cannot hold" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--quantize=int4"], "unknown quantize 'int4'"),
        (["--quantize_output=int8", "--quantize=none"], "the search would evaluate other weights"),
        (["--quantize_output=int7"], "unknown quantize 'int7': did you mean 'int8'?"),
    ],
)
def test_flags_that_do_not_fit(
    small: list[str], flags: list[str], message: str, tmp_path: Path, capsys: Any
) -> None:
    assert main([*small, *flags, f"--output_dir={tmp_path / 'run'}"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_models_without_linear_layers_are_refused(tmp_path: Path) -> None:
    build("gpt2").save_pretrained(tmp_path)
    with pytest.raises(InputError, match="is a gpt2 model, whose projections are not nn.Linear"):
        load(tmp_path, quantize="int8")


def test_without_torchao_the_pip_line_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    int8, _ = both("llama", tmp_path / "dense")
    prune(int8, [1, 1, 0, 1] * LAYERS).save_pretrained(tmp_path / "pruned")
    monkeypatch.setattr(
        "sos_deap.models.quantised.find_spec",
        lambda name: None if name == "torchao" else find_spec(name),
    )
    for path, quantize in (("dense", "int8"), ("pruned", "none")):
        with pytest.raises(InputError, match=r"int8 weights.*pip install 'sos_deap\[int8\]'"):
            load(tmp_path / path, quantize=quantize)


def test_quantised_and_pruned_models_are_refused(tmp_path: Path, capsys: Any) -> None:
    int8, _ = both("llama", tmp_path / "dense")
    int8.save_pretrained(tmp_path / "int8")
    AutoTokenizer.from_pretrained(BUILTIN["builtin:tiny"]).save_pretrained(tmp_path / "int8")
    with pytest.raises(InputError, match="is quantised already: leave --quantize out"):
        load(tmp_path / "int8", quantize="int8")
    assert main(["run", f"--model={tmp_path / 'int8'}", "--quantize=int8"]) == 2
    assert "is quantised (torchao): prune the original, with --quantize" in capsys.readouterr().err


def test_other_kinds_of_int8_are_refused(tmp_path: Path) -> None:
    from torchao.quantization import Int8WeightOnlyConfig, PerTensor, quantize_

    model = build("llama")
    quantize_(model.model.layers, Int8WeightOnlyConfig(granularity=PerTensor()))
    with pytest.raises(InputError, match="o_proj is a Linear of Int8Tensor: pruning needs"):
        prune(model, [1, 1, 0, 1] * LAYERS)
