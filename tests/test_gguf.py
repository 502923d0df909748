"""GGUF files run by llama.cpp give the tokens and logits of transformers; refused models."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, trainers
from tokenizers import pre_tokenizers as pre
from transformers import (
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    PreTrainedTokenizerFast,
)

from sos_deap import InputError, gene_map, head_map, load, prune
from sos_deap.__main__ import main
from sos_deap.export.gguf import write_gguf
from sos_deap.models.sources import BUILTIN
from tests.conftest import small_llama
from tests.llama_cpp import architecture, check_numbers, llama_cpp
from tests.tiny import random_order

gguf = pytest.importorskip("gguf", reason="needs the package gguf")
pytest.importorskip("xllamacpp", reason="needs llama.cpp: the package xllamacpp")

TEXTS = [
    "Return the value of the list.",
    " one  two   three" + " " * 40 + "x",
    "def f(x):\r\n\treturn x ** 2  # don't, I'LL\n\n\n",
    "naïve café, 日本語のテキスト, 😀 ½ 2024 ٣٤ 12345678",
    "a\u00a0b\u2003c\u0301 \x00 \ufeff-----====",
    "before<|end|> after<|end|>",
    " ",
    "",
]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """One thread: for such small models more threads are slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(BUILTIN["builtin:tiny"])


@pytest.fixture(scope="module")
def tiny() -> Any:
    return load("builtin:tiny", dtype="float32")


def some_heads(layers: int, heads: int, empty: set[int]) -> list[int]:
    """Genes that keep no head of some layers, and at least one of the others."""
    draw, genes = random.Random(4), list[int]()
    for layer in range(layers):
        kept = 0 if layer in empty else draw.randint(1, heads)
        genes += draw.sample([1] * kept + [0] * (heads - kept), heads)
    return genes


@pytest.mark.parametrize("empty", [set(), {5, 6}, {0}, {0, 11}, set(range(12))], ids=str)
def test_the_embedded_model_pruned(
    tiny: Any, tokenizer: Any, tmp_path: Path, empty: set[int]
) -> None:
    path = tmp_path / "tiny.gguf"
    pruned = prune(tiny, some_heads(12, 12, empty))
    write_gguf(pruned, tokenizer, path)
    prompts = tokenizer(["Return the value of", "class", "the length of a list\n\n"])["input_ids"]
    check_numbers(pruned, path, prompts, 2e-4)
    assert architecture(path) == "deci"
    assert [file.name for file in tmp_path.iterdir()] == ["tiny.gguf"]


@pytest.mark.parametrize(
    "genes",
    [
        [0, 1, 1, 1] + [0, 0, 0, 0] + [1, 1, 0, 1],  # 1 and 2 query heads per key/value head
        [0, 0, 0, 0] + [1, 0, 1, 1] + [0, 0, 1, 1],  # one key/value head left
        [1, 1, 1, 1] + [0, 1, 1, 0] + [0, 0, 0, 0],
    ],
    ids=str,
)
def test_grouped_queries(genes: list[int], tokenizer: Any, tmp_path: Path) -> None:
    pruned = prune(small_llama(), genes)
    write_gguf(pruned, tokenizer, tmp_path / "model.gguf")
    check_numbers(pruned, tmp_path / "model.gguf", [[7, 300, 41, 1999], [5]], 2e-4)
    assert architecture(tmp_path / "model.gguf") == "deci"


CORNERS: list[tuple[str, list[int], bool, list[int], list[int]]] = [
    # The architecture, the genes by layer (attention, two blocks of channels), whether the
    # feed-forward has biases, its widths in the file, and the layers where it is of zeros.
    ("deci", [1, 1, 1, 1, 0, 1, 1, 1, 0], False, [48, 24, 24], []),
    ("llama", [1, 0, 1, 1, 1, 0, 1, 1, 0], False, [24, 24, 24], []),
    ("deci", [1, 0, 0, 1, 1, 0, 1, 1, 1], False, [32, 24, 48], [0]),
    ("deci", [1, 1, 1, 1, 0, 0, 1, 0, 0], True, [48, 32, 32], [1, 2]),
    ("deci", [1, 1, 1, 0, 0, 0, 1, 1, 0], False, [48, 0, 24], []),
    ("deci", [1, 1, 1, 0, 0, 0, 1, 1, 0], True, [48, 32, 24], [1]),
    ("deci", [0, 0, 0, 0, 1, 0, 0, 0, 0], True, [32, 24, 32], [0, 2]),
    ("deci", [0] * 9, False, [32, 0, 32], [0, 2]),
]


@pytest.mark.parametrize(("kind", "chromosome", "biases", "widths", "zeros"), CORNERS, ids=str)
def test_widths_of_the_feed_forward(
    kind: str,
    chromosome: list[int],
    biases: bool,
    widths: list[int],
    zeros: list[int],
    tokenizer: Any,
    tmp_path: Path,
) -> None:
    model, path = small_llama(mlp_bias=biases), tmp_path / "model.gguf"
    genes = gene_map(model, "attention+channels", 2, random_order(model))
    pruned = prune(model, chromosome, genes)
    assert write_gguf(pruned, tokenizer, path) == zeros
    assert architecture(path) == kind
    length = gguf.GGUFReader(path).get_field(f"{kind}.feed_forward_length").contents()
    assert length == (widths if kind == "deci" else widths[0])
    check_numbers(pruned, path, [[7, 300, 41, 1999], [5]], 2e-4)


def test_the_command_prints_the_layers_with_a_feed_forward_of_zeros(
    tokenizer: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, path = small_llama(), tmp_path / "model.gguf"
    prune(model, [0, 1, 0], gene_map(model, "ffn")).save_pretrained(tmp_path / "pruned")
    tokenizer.save_pretrained(tmp_path / "pruned")
    flags = ["--format", "gguf", "--output", str(path)]
    assert main(["export", str(tmp_path / "pruned"), *flags]) == 0
    assert "empty feed-forwards as 32 channels of zeros (layer 0, 2)\n" in capsys.readouterr().out


LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"attention_bias": True, "mlp_bias": True},
        {"rope_parameters": {"rope_theta": 500000.0, **LLAMA3}},
        {"rope_parameters": {"rope_theta": 10000.0, **YARN}},
        {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "linear", "factor": 4.0}},
        {"tie_word_embeddings": True, "num_key_value_heads": 1, "head_dim": 32},
    ],
    ids=["plain", "biases", "llama3", "yarn", "linear", "tied"],
)
@pytest.mark.parametrize("genes", [None, [0] * 4 + [1] * 4 + [0] * 4 + [1, 0, 1, 1]], ids=str)
def test_configs(
    options: dict[str, Any], genes: list[int] | None, tokenizer: Any, tmp_path: Path
) -> None:
    config = LlamaConfig(
        vocab_size=2048,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=128,
        bos_token_id=0,
        eos_token_id=0,
        **options,
    )
    model: Any = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model = model if genes is None else prune(model, genes)
    write_gguf(model, tokenizer, tmp_path / "model.gguf")
    prompt = torch.randint(1, 2048, (60,)).tolist()
    check_numbers(model, tmp_path / "model.gguf", [prompt], 5e-4)
    assert architecture(tmp_path / "model.gguf") == ("llama" if genes is None else "deci")


@pytest.mark.parametrize("layout", ["sliced", "uniform"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_dtypes(dtype: torch.dtype, layout: str, tokenizer: Any, tmp_path: Path) -> None:
    model = small_llama().to(dtype)
    heads = head_map(model, "group")
    pruned = prune(model, [1, 0] + [0, 1] * 2, heads, layout=layout)
    write_gguf(pruned, tokenizer, tmp_path / "model.gguf")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    kinds = {len(tensor.shape): tensor.tensor_type.name for tensor in tensors.values()}
    assert kinds == {1: "F32", 2: "F16" if dtype == torch.float16 else "BF16"}
    assert architecture(tmp_path / "model.gguf") == "llama"
    check_numbers(pruned, tmp_path / "model.gguf", [[7, 300, 41, 1999]], 0.05)


def documents() -> list[str]:
    return [Path(module.__file__ or "").read_text() for module in (json, random, subprocess)]


def byte_level(steps: Any, *, ignore_merges: bool = False) -> Any:
    """A tokenizer with its own vocabulary."""
    inner: Any = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    inner.pre_tokenizer = steps
    inner.train_from_iterator(
        documents(),
        trainers.BpeTrainer(
            vocab_size=1200,
            special_tokens=["<|end|>"],
            initial_alphabet=pre.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|end|>", bos_token="<|end|>")


def sentencepiece_like(*, byte_fallback: bool = True, **changes: Any) -> Any:
    """A tokenizer like Llama 2's: bytes, merges for every pair, spaces as letters."""
    inner: Any = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=900, special_tokens=["<|end|>"], show_progress=False)
    inner.train_from_iterator(documents(), trainer)
    learned = sorted(inner.get_vocab(), key=inner.get_vocab().get)
    texts = ["<unk>", "<|end|>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁▁", "▁▁▁"]
    vocab = {text: i for i, text in enumerate(dict.fromkeys(texts + learned))}
    splits = [(text[:cut], text[cut:]) for text in vocab for cut in range(1, len(text))]
    merges = [pair for pair in splits if pair[0] in vocab and pair[1] in vocab]
    settings = {"unk_token": "<unk>", "fuse_unk": True, "byte_fallback": byte_fallback, **changes}
    inner = Tokenizer(models.BPE(vocab=vocab, merges=merges, **settings))
    inner.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer: Any = PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", eos_token="<|end|>"
    )
    return tokenizer


def llama3_words(digits: str = r"\p{N}{1,3}") -> Any:
    regex = (
        rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}|"
        r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    bytes_only = pre.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre.Sequence([pre.Split(Regex(regex), "isolated"), bytes_only])


def gpt2_words() -> Any:
    return pre.ByteLevel(add_prefix_space=False)


def smollm_words() -> Any:
    return pre.Sequence([pre.Digits(individual_digits=True), gpt2_words()])


def with_added_tokens() -> Any:
    tokenizer = byte_level(gpt2_words())
    tokenizer.add_tokens([AddedToken("three"), AddedToken("é,", normalized=False)])
    return tokenizer


def with_template() -> Any:
    tokenizer = sentencepiece_like()
    tokenizer.bos_token = "<|end|>"
    tokenizer.add_bos_token = True
    tokenizer.update_post_processor()
    return tokenizer


def without_space_in_front() -> Any:
    tokenizer = sentencepiece_like()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace(" ", "▁")
    return tokenizer


def like_gemma() -> Any:
    tokenizer = without_space_in_front()
    tokenizer.backend_tokenizer.pre_tokenizer = pre.Split(" ", "merged_with_previous")
    return tokenizer


def like_qwen() -> Any:
    tokenizer = byte_level(llama3_words(r"\p{N}"))
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def llama_for(tokenizer: Any) -> Any:
    """A model with a few more rows than the tokenizer has tokens, as some models have."""
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 5,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
    )
    return LlamaForCausalLM(config)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: AutoTokenizer.from_pretrained(BUILTIN["builtin:tiny"]), "gpt-2"),
        (lambda: byte_level(llama3_words(), ignore_merges=True), "llama-bpe"),
        (lambda: byte_level(llama3_words()), "smaug-bpe"),
        (lambda: byte_level(smollm_words()), "smollm"),
        (with_added_tokens, "gpt-2"),
        (sentencepiece_like, "default"),
        (with_template, "default"),
        (without_space_in_front, "default"),
        (like_gemma, "default"),
        (lambda: byte_level(llama3_words(r"\p{N}")), "qwen2"),
    ],
)
def test_the_tokens_are_those_of_transformers(make: Any, name: str, tmp_path: Path) -> None:
    tokenizer = make()
    model = llama_for(tokenizer)
    write_gguf(model, tokenizer, tmp_path / "model.gguf")
    texts = [*TEXTS, documents()[0][:3000]]
    found, _, _ = llama_cpp(tmp_path / "model.gguf", model.config.vocab_size, texts)
    for text, tokens in zip(texts, found, strict=True):
        assert tokens == tokenizer(text)["input_ids"], text
    pre_name = gguf.GGUFReader(tmp_path / "model.gguf").get_field("tokenizer.ggml.pre")
    assert pre_name.contents() == name


def test_metaspace_differs_only_where_the_docstring_states(tmp_path: Path) -> None:
    tokenizer = sentencepiece_like()
    tokenizer.backend_tokenizer.normalizer = None
    tokenizer.backend_tokenizer.pre_tokenizer = pre.Metaspace("▁", "first", split=False)
    write_gguf(llama_for(tokenizer), tokenizer, tmp_path / "model.gguf")
    found, _, _ = llama_cpp(tmp_path / "model.gguf", len(tokenizer), TEXTS)
    different = [
        text
        for text, tokens in zip(TEXTS, found, strict=True)
        if tokens != tokenizer(text)["input_ids"]
    ]
    assert different == [text for text in TEXTS if text.startswith(" ") or "<|end|>" in text]


def test_nfc_differs_only_where_the_docstring_states(tmp_path: Path) -> None:
    tokenizer, texts = like_qwen(), [*TEXTS, "e\u0301", documents()[0][:3000]]
    write_gguf(llama_for(tokenizer), tokenizer, tmp_path / "model.gguf")
    found, _, _ = llama_cpp(tmp_path / "model.gguf", len(tokenizer), texts)
    for text, tokens in zip(texts, found, strict=True):
        same = tokens == tokenizer(text)["input_ids"]
        assert same == unicodedata.is_normalized("NFC", text), text
    assert not all(unicodedata.is_normalized("NFC", text) for text in texts)


def lowercase() -> Any:
    tokenizer = byte_level(gpt2_words())
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    return tokenizer


def without_eos() -> Any:
    tokenizer = byte_level(gpt2_words())
    tokenizer.eos_token = None
    return tokenizer


def stripping() -> Any:
    tokenizer = byte_level(gpt2_words())
    tokenizer.add_tokens([AddedToken("<mask>", lstrip=True)])
    return tokenizer


def one_merge_short() -> Any:
    tokenizer = sentencepiece_like()
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    spec["model"]["merges"].pop()
    inner = Tokenizer.from_str(json.dumps(spec))
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|end|>")


def shuffled_merges() -> Any:
    tokenizer = sentencepiece_like()
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    random.Random(0).shuffle(spec["model"]["merges"])
    inner = Tokenizer.from_str(json.dumps(spec))
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|end|>")


def word_level() -> Any:
    inner = Tokenizer(models.WordLevel({"a": 0, "<|end|>": 1}, unk_token="a"))
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|end|>")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (word_level, "its model is WordLevel"),
        (
            lambda: byte_level(pre.ByteLevel(add_prefix_space=True)),
            "its pre-tokenizer .* is not equivalent",
        ),
        (
            lambda: byte_level(gpt2_words(), ignore_merges=True),
            "its pre-tokenizer .* is not equivalent",
        ),
        (lowercase, "it normalises text"),
        (stripping, "'<mask>' has lstrip"),
        (without_eos, "it has no eos token"),
        (one_merge_short, "and llama.cpp would"),
        (shuffled_merges, "are not consecutive"),
        (lambda: sentencepiece_like(byte_fallback=False), "pre-tokenizer|normalises text"),
        (lambda: sentencepiece_like(ignore_merges=True), "ignore_merges=True"),
        (object, "object is not a fast tokenizer"),
    ],
)
def test_tokenizers_without_an_equivalent_are_refused(
    make: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        write_gguf(small_llama(), make(), tmp_path / "model.gguf")
    assert not list(tmp_path.iterdir())


def test_a_tokenizer_larger_than_the_model(tokenizer: Any, tmp_path: Path) -> None:
    model = LlamaForCausalLM(LlamaConfig(**{**small_llama().config.to_dict(), "vocab_size": 2000}))
    with pytest.raises(InputError, match="a token 2047, and the model has 2000 rows"):
        write_gguf(model, tokenizer, tmp_path / "model.gguf")


def test_other_models_are_refused(tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    gpt2 = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=2048))
    with pytest.raises(
        InputError, match="a gpt2 model cannot be written as GGUF: give a model of type"
    ):
        write_gguf(gpt2, tokenizer, path)
    config = small_llama().config
    with pytest.raises(InputError, match="give a LlamaForCausalLM"):
        write_gguf(LlamaModel(config), tokenizer, path)
    with pytest.raises(InputError, match="weights of torch.float64"):
        write_gguf(small_llama().double(), tokenizer, path)
    for name, value, message in (
        ("hidden_act", "gelu", "hidden_act=gelu"),
        ("rope_parameters", {"rope_type": "dynamic", "rope_theta": 1e4}, "rope_type=dynamic"),
    ):
        model = small_llama()
        setattr(model.config, name, value)
        with pytest.raises(InputError, match=message):
            write_gguf(model, tokenizer, path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "error",
    [OSError(28, "No space left on device"), OSError("No space left: 9 requested and 3 written")],
    ids=str,
)
def test_nothing_is_left_after_a_failure(
    error: OSError, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise error

    path = tmp_path / "model.gguf"
    path.write_text("an older file")
    monkeypatch.setattr(gguf.GGUFWriter, "write_tensors_to_file", full)
    with pytest.raises(InputError, match="model.gguf: No space left"):
        write_gguf(small_llama(), tokenizer, path)
    assert path.read_text() == "an older file"
    assert [file.name for file in tmp_path.iterdir()] == ["model.gguf"]


def test_where_nothing_can_be_written(tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no folder"):
        write_gguf(small_llama(), tokenizer, tmp_path / "nowhere" / "model.gguf")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="cannot write .*folder"):
        write_gguf(small_llama(), tokenizer, tmp_path / "folder")
    assert [file.name for file in tmp_path.iterdir()] == ["folder"]


def test_without_the_package(
    tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(InputError, match=r"pip install 'sos_deap\[gguf\]'"):
        write_gguf(small_llama(), tokenizer, tmp_path / "model.gguf")
