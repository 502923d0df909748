"""A Hugging Face tokenizer in llama.cpp's terms, or a reason why it has no like there."""

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


@dataclass(frozen=True)
class Vocabulary:
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


def read_vocabulary(tokenizer: Any, size: int) -> Vocabulary:
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


def add_tokenizer(writer: Any, vocabulary: Vocabulary, tokenizer: Any) -> None:
    """Add a tokenizer to a GGUF writer: its vocabulary, special tokens and chat template."""
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
