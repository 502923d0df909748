"""Write a Llama model, pruned or not, as a GGUF file, which stock llama.cpp runs."""

from __future__ import annotations

import importlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from sos_deap.errors import InputError, first_line

_FILE_TYPES = {
    torch.float32: "ALL_F32",
    torch.float16: "MOSTLY_F16",
    torch.bfloat16: "MOSTLY_BF16",
}

# The others stretch the wavelengths by the length of the text; a GGUF file holds one set of them.
_ROPE_TYPES = ("default", "linear", "llama3", "yarn")

_LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BYTES: dict[str, Any] = {"type": "ByteLevel", "add_prefix_space": False}
_GPT2 = [_BYTES | {"use_regex": True}]
_LLAMA3 = [
    {
        "type": "Split",
        "pattern": {"Regex": _LLAMA3_WORDS},
        "behavior": "Isolated",
        "invert": False,
    },
    _BYTES | {"use_regex": False},
]
_SMOLLM = [{"type": "Digits", "individual_digits": True}, *_GPT2]

#: llama.cpp's name for each way to cut text into words: its steps, and whether a word that is in
#: the vocabulary is one token even if no merges lead there.
_WORDS: dict[str, tuple[list[dict[str, Any]], bool]] = {
    "gpt-2": (_GPT2, False),
    "llama-bpe": (_LLAMA3, True),
    "smaug-bpe": (_LLAMA3, False),
    "smollm": (_SMOLLM, False),
}


def write_gguf(model: PreTrainedModel, tokenizer: Any, path: Path) -> None:
    """Write a model and its tokenizer as one GGUF file.

    Where all layers have the same numbers of heads, the file's architecture is ``llama``, which
    the most programs read; else it is ``deci``, llama.cpp's Llama with head counts per layer.
    Matrices are stored in the dtype they have, all else in float32.

    The file's tokenizer gives the tokens of the Hugging Face one, but for one case: where that
    has a Metaspace pre-tokenizer (Llama 2 in transformers 5), llama.cpp puts a space also before
    text that starts with one or, with ``prepend_scheme="first"``, that follows a special token.

    :param model: a ``LlamaForCausalLM``.
    :param tokenizer: its fast tokenizer.
    :param path: the file; it is written beside its place and renamed.
    :raises InputError: for a model or a tokenizer that llama.cpp cannot run as it is, for a path
        that cannot be written, and where the package ``gguf`` is missing.
    """
    gguf = _package()
    if not path.parent.is_dir():
        raise InputError(f"cannot write {path}: there is no folder {path.parent}")
    _check(model)
    vocabulary = _vocabulary(tokenizer, model.config.vocab_size)
    factors, rope_scale = _rope(model.config)
    counts, tensors = _tensors(model, factors)
    # deci is needed for counts that differ; every llama.cpp and its relatives read llama.
    writer = gguf.GGUFWriter(None, "llama" if len(set(counts)) == 1 else "deci")
    _add_sizes(writer, model.config, counts, rope_scale)
    writer.add_file_type(gguf.LlamaFileType[_FILE_TYPES[model.dtype]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_tokenizer(writer, vocabulary, tokenizer)
    for name, tensor in tensors.items():
        _add_tensor(writer, name, tensor, gguf.GGMLQuantizationType.BF16)
    _write(writer, path)


def _package() -> Any:
    try:
        return importlib.import_module("gguf")
    except ImportError as error:
        raise InputError(
            "writing a GGUF file needs the package gguf: pip install 'sos_deap[gguf]'"
        ) from error


def _write(writer: Any, path: Path) -> None:
    beside = path.with_name(path.name + ".part")
    try:
        try:
            writer.write_header_to_file(beside)
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()
        os.replace(beside, path)
    except OSError as error:
        why = error.strerror or first_line(error)  # numpy gives a text only
        raise InputError(f"cannot write {path}: {why}") from error
    finally:
        beside.unlink(missing_ok=True)


def _check(model: PreTrainedModel) -> None:
    """Raise :class:`InputError` for what llama.cpp's Llama does not compute."""
    config: Any = model.config
    if config.model_type != "llama":
        raise InputError(
            f"a {config.model_type} model cannot be written as GGUF: only llama is served, since "
            "llama.cpp has head counts per layer (its architecture deci) for Llama's layers only"
        )
    if not isinstance(model, LlamaForCausalLM):
        raise InputError(
            f"a {type(model).__name__} cannot be written as GGUF: give a LlamaForCausalLM"
        )
    if stray := {parameter.dtype for parameter in model.parameters()} - set(_FILE_TYPES):
        raise InputError(
            f"the model has weights of {stray.pop()}: a GGUF file is written from float32, float16 "
            "or bfloat16; load the model without quantisation"
        )
    if config.hidden_act not in ("silu", "swish"):
        raise InputError(
            f"the model has hidden_act={config.hidden_act}: llama.cpp's Llama computes silu only"
        )


def _rope(config: Any) -> tuple[Tensor | None, float]:
    """What divides the rotary frequencies, and what multiplies the rotated vectors.

    llama.cpp has keys for some of the scaling types and a tensor of divisors for llama3; the
    tensor expresses every type that does not depend on the length of the text.
    """
    rope = config.rope_parameters
    kind = rope["rope_type"]
    if kind not in _ROPE_TYPES:
        raise InputError(
            f"the model has rope_type={kind}, which a GGUF file cannot express: "
            f"served are {', '.join(_ROPE_TYPES)}"
        )
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise InputError("the model rotates a part of each head: llama.cpp's Llama rotates it all")
    if kind == "default":
        return None, 1.0
    steps = torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim
    scaled, scale = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    return rope["rope_theta"] ** -steps / scaled, scale


def _add_sizes(
    writer: Any, config: Any, counts: Sequence[tuple[int, int]], rope_scale: float
) -> None:
    """The metadata of the architecture."""
    heads, kv_heads = ([count[i] for count in counts] for i in (0, 1))
    same = len(set(counts)) == 1
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(len(counts))
    writer.add_head_count(heads[0] if same else heads)
    writer.add_head_count_kv(kv_heads[0] if same else kv_heads)
    # Else they would be taken for embedding_length / head_count, wrong once heads are gone.
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))
    if rope_scale != 1.0:
        writer.add_rope_scaling_attn_factors(rope_scale)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def _tensors(
    model: Any, rope_factors: Tensor | None
) -> tuple[list[tuple[int, int]], dict[str, Tensor]]:
    """Each layer's numbers of query and key/value heads, and the tensors by llama.cpp's names."""
    tensors = {"token_embd.weight": model.model.embed_tokens.weight}
    if rope_factors is not None:
        tensors["rope_freqs.weight"] = rope_factors
    counts = []
    for i, layer in enumerate(model.model.layers):
        heads, kv_heads, attention = _attention(model, layer.self_attn, first=i == 0)
        counts.append((heads, kv_heads))
        if heads:
            attention["attn_norm.weight"] = layer.input_layernorm.weight
        tensors |= {f"blk.{i}.{name}": tensor for name, tensor in attention.items()}
        tensors[f"blk.{i}.ffn_norm.weight"] = layer.post_attention_layernorm.weight
        for part in ("gate", "up", "down"):
            for name, tensor in getattr(layer.mlp, f"{part}_proj").named_parameters():
                tensors[f"blk.{i}.ffn_{part}.{name}"] = tensor
    tensors["output_norm.weight"] = model.model.norm.weight
    if model.lm_head.weight is not model.model.embed_tokens.weight:
        tensors["output.weight"] = model.lm_head.weight
    return counts, tensors


def _attention(model: Any, attention: Any, *, first: bool) -> tuple[int, int, dict[str, Tensor]]:
    """The numbers of heads of one layer, and its attention's tensors as llama.cpp wants them."""
    head_dim, width = model.config.head_dim, model.config.hidden_size
    if hasattr(attention, "q_proj"):
        parts = {n: dict(getattr(attention, f"{n}_proj").named_parameters()) for n in "qkvo"}
        heads, kv_heads = (len(parts[n]["weight"]) // head_dim for n in "qk")
        uses = getattr(attention, "query_heads_per_kv_head", None) or [heads // kv_heads] * kv_heads
    elif first or attention.o_proj.bias is not None:
        # A head of zeros stands in: llama.cpp takes sizes for all layers from the first, and has
        # no place for a bias where there is no attention.
        zeros = model.model.embed_tokens.weight.new_zeros(head_dim, width)
        parts = {n: {"weight": zeros} for n in "qkv"} | {"o": {"weight": zeros.T}}
        if attention.o_proj.bias is not None:
            parts["o"]["bias"] = attention.o_proj.bias
        uses = [1]
    else:
        return 0, 0, {}
    # llama.cpp needs equally many query heads for every key/value head. Where they differ, a
    # key/value head is repeated so that each copy serves as many as their greatest common divisor.
    size = math.gcd(*uses)
    copies = torch.tensor([count // size for count in uses])
    tensors = {}
    for part, parameters in parts.items():
        for name, parameter in parameters.items():
            tensor = parameter.detach()
            if part in "kv" and len(set(uses)) > 1:
                by_head = tensor.unflatten(0, (-1, head_dim))
                tensor = by_head.repeat_interleave(copies.to(tensor.device), 0).flatten(0, 1)
            if part in "qk":
                # transformers rotates a head's first half with its second, llama.cpp neighbours.
                halves = tensor.unflatten(0, (-1, 2, head_dim // 2))
                tensor = halves.transpose(1, 2).flatten(0, 2)
            tensors[f"attn_{'output' if part == 'o' else part}.{name}"] = tensor
    return sum(uses), sum(uses) // size if len(set(uses)) > 1 else len(uses), tensors


def _add_tensor(writer: Any, name: str, tensor: Tensor, bfloat16: Any) -> None:
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dim() == 1:  # llama.cpp adds and multiplies vectors in float32
        writer.add_tensor(name, tensor.float().numpy())
    elif tensor.dtype == torch.bfloat16:  # which numpy does not have
        writer.add_tensor(name, tensor.view(torch.uint8).numpy(), raw_dtype=bfloat16)
    else:
        writer.add_tensor(name, tensor.numpy())


@dataclass(frozen=True)
class _Vocabulary:
    """A tokenizer in llama.cpp's terms.

    :param model: its name for the kind of tokenizer.
    :param pre: its name for the way text is cut into words.
    :param tokens: the text of each token.
    :param types: their types, by the names in ``gguf.TokenType``.
    :param add: whether ``bos`` and ``eos`` are put around a text.
    :param merges: for byte-level BPE: the pairs to join, in order.
    :param scores: for SentencePiece's BPE: of two joins the one with the higher score comes first.
    :param space_prefix: whether text gets a space in front.
    """

    model: str
    pre: str
    tokens: Sequence[str]
    types: Sequence[str]
    add: Mapping[str, bool]
    merges: Sequence[str] = ()
    scores: Sequence[float] = ()
    space_prefix: bool = False


def _vocabulary(tokenizer: Any, size: int) -> _Vocabulary:
    """Read a tokenizer; raise :class:`InputError` unless llama.cpp has its like."""
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise _refused(f"{type(tokenizer).__name__} is none of the library tokenizers")
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    bpe = spec["model"]
    if bpe["type"] != "BPE":
        raise _refused(f"its model is {bpe['type']}, and only BPE is served")
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if bpe.get(name):
            raise _refused(f"its BPE has {name}={bpe[name]!r}")
    tokens, types = _tokens(spec, size)
    merges = [tuple(pair) for pair in bpe["merges"]]
    add = _added_around(tokenizer)
    if not bpe.get("byte_fallback"):
        pre = _words(spec)
        if not set(pre_tokenizers.ByteLevel.alphabet()) <= set(bpe["vocab"]):
            raise _refused("its vocabulary lacks some of the 256 bytes")
        return _Vocabulary("gpt2", pre, tokens, types, add, merges=[" ".join(p) for p in merges])
    prefix = _space_prefix(spec)
    normal = [text for text, kind in zip(tokens, types, strict=True) if kind == "NORMAL"]
    scores = _scores(bpe, merges, normal)
    return _Vocabulary(
        "llama",
        "default",
        tokens,
        types,
        add,
        scores=[scores.get(token, 0.0) for token in tokens],
        space_prefix=prefix,
    )


def _refused(why: str) -> InputError:
    return InputError(f"the tokenizer cannot be written as GGUF: {why}")


def _tokens(spec: Any, size: int) -> tuple[list[str], list[str]]:
    """The text and the type of every token; numbers the tokenizer does not use are filled up."""
    vocab: dict[str, int] = dict(spec["model"]["vocab"])
    kinds = {f"<0x{byte:02X}>": "BYTE" for byte in range(256)}
    kinds = kinds if spec["model"].get("byte_fallback") else {}
    for added in spec["added_tokens"]:
        for name in ("single_word", "lstrip", "rstrip"):
            if added[name]:
                raise _refused(f"its token {added['content']!r} has {name}")
        if added["normalized"] and spec["normalizer"] and not added["special"]:
            raise _refused(f"its token {added['content']!r} is normalised")
        vocab[added["content"]] = added["id"]
        kinds[added["content"]] = "CONTROL" if added["special"] else "USER_DEFINED"
    if spec["model"].get("unk_token"):
        kinds[spec["model"]["unk_token"]] = "UNKNOWN"
    if max(vocab.values()) >= size:
        raise _refused(f"it has a token {max(vocab.values())}, and the model has rows for {size}")
    texts = {number: text for text, number in vocab.items()}
    tokens = [texts.get(number, f"[PAD{number}]") for number in range(size)]
    return tokens, [
        kinds.get(text, "NORMAL") if number in texts else "UNUSED"
        for number, text in enumerate(tokens)
    ]


def _added_around(tokenizer: Any) -> dict[str, bool]:
    """Whether the tokenizer puts its bos and eos tokens around a text."""
    bos, eos = ([token] for token in (tokenizer.bos_token_id, tokenizer.eos_token_id))
    if eos == [None]:
        raise _refused("it has no eos token, for which llama.cpp would take another; set one")
    bare, whole = (tokenizer("a", add_special_tokens=on)["input_ids"] for on in (False, True))
    for add_bos in (False, True):
        for add_eos in (False, True):
            if whole == bos * add_bos + bare + eos * add_eos:
                return {"bos": add_bos, "eos": add_eos}
    raise _refused("it puts other tokens than its bos and eos around a text")


def _words(spec: Any) -> str:
    """llama.cpp's name for the way a byte-level tokenizer cuts text into words."""
    if spec["normalizer"]:
        raise _refused(f"it normalises text ({spec['normalizer']['type']}), llama.cpp does not")
    pre = spec["pre_tokenizer"] or {"type": "none"}
    steps = [
        {name: value for name, value in step.items() if name != "trim_offsets"}
        for step in pre.get("pretokenizers", [pre])
    ]
    given = (steps, bool(spec["model"].get("ignore_merges")))
    for name, known in _WORDS.items():
        if given == known:
            return name
    raise _refused(
        f"it cuts text into words ({', '.join(step['type'] for step in steps)}) in a way that is "
        f"none of {', '.join(_WORDS)}"
    )


def _space_prefix(spec: Any) -> bool:
    """Whether a SentencePiece-like tokenizer puts a space in front of a text."""
    steps = spec["normalizer"] or {"normalizers": []}
    steps = steps.get("normalizers", [steps])
    prepend = {"type": "Prepend", "prepend": "▁"}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    pre = spec["pre_tokenizer"]
    if pre is None and steps in ([replace], [prepend, replace]):
        return len(steps) == 2
    metaspace = {"type": "Metaspace", "replacement": "▁", "split": False}
    if pre and not steps and metaspace.items() <= pre.items():
        return bool(pre["prepend_scheme"] != "never")
    raise _refused("it does not treat spaces as Llama 2's does")


def _scores(bpe: Any, merges: Sequence[tuple[str, ...]], normal: Sequence[str]) -> dict[str, float]:
    """What llama.cpp goes by instead of merges: a score for each token that is made of two.

    It joins any two neighbours that make up a token, so every such pair must be a merge, and the
    pairs that make up one token must follow each other in the order of merges.
    """
    vocab, known = bpe["vocab"], set(merges)
    if missing := {f"<0x{byte:02X}>" for byte in range(256)} - set(vocab):
        raise _refused(f"it falls back to bytes, and {min(missing)} is not in its vocabulary")
    if bpe.get("ignore_merges"):
        raise _refused("its BPE has ignore_merges=True")
    for token in normal:
        for cut in range(1, len(token)):
            pair: tuple[str, ...] = (token[:cut], token[cut:])
            # A letter that is not in the vocabulary is joined too.
            if pair not in known and all(part in vocab or len(part) == 1 for part in pair):
                raise _refused(f"it does not join {pair[0]!r} and {pair[1]!r}, and llama.cpp would")
    places: dict[str, list[int]] = {}
    for place, pair in enumerate(merges):
        places.setdefault("".join(pair), []).append(place)
    # Of equal scores the leftmost pair is joined first. For runs of spaces, to which SentencePiece
    # may give one score, the merges lead to the same: the leftmost run grows as far as it can.
    runs = {token: at for token, at in places.items() if not token.strip("▁")}
    if not all(map(_adjacent, runs.values())):
        places |= dict.fromkeys(runs, sorted(place for at in runs.values() for place in at))
    for token, at in places.items():
        if not _adjacent(at):
            raise _refused(f"its merges that make up {token!r} do not follow each other")
    return {token: -1.0 - at[0] for token, at in places.items()}


def _adjacent(places: Sequence[int]) -> bool:
    return places[-1] - places[0] < len(places)


def _add_tokenizer(writer: Any, vocabulary: _Vocabulary, tokenizer: Any) -> None:
    types = importlib.import_module("gguf").TokenType
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types([types[name] for name in vocabulary.types])
    if vocabulary.model == "llama":
        writer.add_token_scores(vocabulary.scores)
        writer.add_add_space_prefix(vocabulary.space_prefix)
    else:
        writer.add_token_merges(vocabulary.merges)
    # Not gguf.SpecialVocab: it guesses from files what is around a text, and here it is known.
    for name in ("bos", "eos", "unk", "pad"):
        if (number := getattr(tokenizer, f"{name}_token_id")) is not None:
            getattr(writer, f"add_{name}_token_id")(number)
    writer.add_add_bos_token(vocabulary.add["bos"])
    writer.add_add_eos_token(vocabulary.add["eos"])
    if isinstance(template := tokenizer.chat_template, dict):
        template = [{"name": name, "template": text} for name, text in template.items()]
    if template:
        writer.add_chat_template(template)
