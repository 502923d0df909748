"""Convert a Hugging Face tokenizer to llama.cpp's format, or explain why it has no equivalent."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import pre_tokenizers

from sos_deap.errors import InputError

_LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN_WORDS = _LLAMA3_WORDS.replace(r"\p{N}{1,3}", r"\p{N}")
_BYTES: dict[str, Any] = {"type": "ByteLevel", "add_prefix_space": False}
_GPT2 = [_BYTES | {"use_regex": True}]


def _split(words: str) -> list[dict[str, Any]]:
    """Return the steps that split a text into words by a regular expression."""
    pattern = {"Regex": words}
    split = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    return [split, _BYTES | {"use_regex": False}]


_LLAMA3 = _split(_LLAMA3_WORDS)
_SMOLLM = [{"type": "Digits", "individual_digits": True}, *_GPT2]

#: llama.cpp's pre-tokenizers by name: the steps, and whether a word of the vocabulary is one token
#: even if no sequence of merges produces it.
_WORDS: dict[str, tuple[list[dict[str, Any]], bool]] = {
    "gpt-2": (_GPT2, False),
    "llama-bpe": (_LLAMA3, True),
    "qwen2": (_split(_QWEN_WORDS), False),
    "smaug-bpe": (_LLAMA3, False),
    "smollm": (_SMOLLM, False),
}


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer in llama.cpp's format.

    :param model: llama.cpp's name for the kind of tokenizer.
    :param pre: llama.cpp's name for the pre-tokenizer.
    :param tokens: the text of each token.
    :param types: the type of each token, by its name in ``gguf.TokenType``.
    :param add: whether ``"bos"`` and ``"eos"`` tokens are added to a text.
    :param merges: for byte-level BPE: the pairs to merge, in order.
    :param scores: for SentencePiece's BPE: a score per token; the merge with the highest score is
        done first.
    :param space_prefix: whether a space is inserted before a text.
    """

    model: str
    pre: str
    tokens: Sequence[str]
    types: Sequence[str]
    add: Mapping[str, bool]
    merges: Sequence[str] = ()
    scores: Sequence[float] = ()
    space_prefix: bool = False


def read_vocabulary(tokenizer: Any, size: int) -> Vocabulary:
    """Convert a tokenizer to llama.cpp's format.

    :param tokenizer: a fast tokenizer.
    :param size: number of rows of the model's embedding.
    :raises InputError: if llama.cpp has no equivalent.
    """
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise _refused(f"{type(tokenizer).__name__} is not a fast tokenizer")
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    bpe = spec["model"]
    if bpe["type"] != "BPE":
        raise _refused(f"its model is {bpe['type']}, and only BPE can be written")
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
        return Vocabulary("gpt2", pre, tokens, types, add, merges=[" ".join(p) for p in merges])
    prefix = _space_prefix(spec)
    normal = [text for text, kind in zip(tokens, types, strict=True) if kind == "NORMAL"]
    scores = _scores(bpe, merges, normal)
    return Vocabulary(
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
    """Return the text and the type of every token; unused ids get a placeholder."""
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
        raise _refused(f"it has a token {max(vocab.values())}, and the model has {size} rows")
    texts = {number: text for text, number in vocab.items()}
    tokens = [texts.get(number, f"[PAD{number}]") for number in range(size)]
    return tokens, [
        kinds.get(text, "NORMAL") if number in texts else "UNUSED"
        for number, text in enumerate(tokens)
    ]


def _added_around(tokenizer: Any) -> dict[str, bool]:
    """Return whether the tokenizer adds its bos and eos tokens to a text."""
    bos, eos = ([token] for token in (tokenizer.bos_token_id, tokenizer.eos_token_id))
    if eos == [None]:
        raise _refused("it has no eos token, and llama.cpp would use another one; set one")
    plain, complete = (tokenizer("a", add_special_tokens=on)["input_ids"] for on in (False, True))
    for add_bos in (False, True):
        for add_eos in (False, True):
            if complete == bos * add_bos + plain + eos * add_eos:
                return {"bos": add_bos, "eos": add_eos}
    raise _refused("it adds other tokens than its bos and eos to a text")


def _words(spec: Any) -> str:
    """Return llama.cpp's name for the pre-tokenizer of a byte-level tokenizer."""
    # llama.cpp does not normalise. Most texts are in NFC, to which Qwen's tokenizers normalise.
    if spec["normalizer"] not in (None, {"type": "NFC"}):
        raise _refused(f"it normalises text ({spec['normalizer']['type']}), and llama.cpp does not")
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
        f"its pre-tokenizer ({', '.join(step['type'] for step in steps)}) is not equivalent to one "
        f"of {', '.join(_WORDS)}"
    )


def _space_prefix(spec: Any) -> bool:
    """Return whether a SentencePiece-like tokenizer inserts a space before a text."""
    steps = spec["normalizer"] or {"normalizers": []}
    steps = steps.get("normalizers", [steps])
    prepend = {"type": "Prepend", "prepend": "▁"}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    pre = spec["pre_tokenizer"]
    # Gemma's: nothing to split is left after the replacement.
    spaces = {"pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    if pre in (None, {"type": "Split", **spaces}) and steps in ([replace], [prepend, replace]):
        return len(steps) == 2
    metaspace = {"type": "Metaspace", "replacement": "▁", "split": False}
    if pre and not steps and metaspace.items() <= pre.items():
        return bool(pre["prepend_scheme"] != "never")
    raise _refused("it does not treat spaces as Llama 2's tokenizer does")


def _scores(bpe: Any, merges: Sequence[tuple[str, ...]], normal: Sequence[str]) -> dict[str, float]:
    """Return the scores that llama.cpp uses instead of merges, for each token that is merged.

    llama.cpp merges any two adjacent tokens whose texts together are a token. So every such pair
    must be a merge, and the merges that produce one token must be consecutive.

    :param bpe: the BPE model of the tokenizer.
    :param merges: its merges, in order.
    :param normal: the texts of the normal tokens.
    """
    vocab, merged = bpe["vocab"], set(merges)
    if missing := {f"<0x{byte:02X}>" for byte in range(256)} - set(vocab):
        raise _refused(f"it falls back to bytes, and {min(missing)} is not in its vocabulary")
    if bpe.get("ignore_merges"):
        raise _refused("its BPE has ignore_merges=True")
    for token in normal:
        for cut in range(1, len(token)):
            pair: tuple[str, ...] = (token[:cut], token[cut:])
            # Characters outside the vocabulary are merged, too.
            if pair not in merged and all(part in vocab or len(part) == 1 for part in pair):
                raise _refused(
                    f"it does not merge {pair[0]!r} and {pair[1]!r}, and llama.cpp would"
                )
    places: dict[str, list[int]] = {}
    for place, pair in enumerate(merges):
        places.setdefault("".join(pair), []).append(place)
    # Among equal scores the leftmost pair is merged first. For runs of spaces, to which
    # SentencePiece may give one score, the merges have the same result: the leftmost run grows as
    # far as possible.
    runs = {token: at for token, at in places.items() if not token.strip("▁")}
    if not all(map(_adjacent, runs.values())):
        places |= dict.fromkeys(runs, sorted(place for at in runs.values() for place in at))
    for token, at in places.items():
        if not _adjacent(at):
            raise _refused(f"its merges that produce {token!r} are not consecutive")
    return {token: -1.0 - at[0] for token, at in places.items()}


def _adjacent(places: Sequence[int]) -> bool:
    return places[-1] - places[0] < len(places)


def add_tokenizer(writer: Any, vocabulary: Vocabulary, tokenizer: Any) -> None:
    """Add a tokenizer to a GGUF writer: its vocabulary, special tokens and chat template.

    :param writer: a ``gguf.GGUFWriter``.
    :param vocabulary: the tokenizer in llama.cpp's format.
    :param tokenizer: the Hugging Face tokenizer.
    """
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
    # gguf.SpecialVocab would guess from files which tokens are added to a text.
    for name in ("bos", "eos", "unk", "pad"):
        if (number := getattr(tokenizer, f"{name}_token_id")) is not None:
            getattr(writer, f"add_{name}_token_id")(number)
    writer.add_add_bos_token(vocabulary.add["bos"])
    writer.add_add_eos_token(vocabulary.add["eos"])
    if isinstance(template := tokenizer.chat_template, dict):
        template = [{"name": name, "template": text} for name, text in template.items()]
    if template:
        writer.add_chat_template(template)
