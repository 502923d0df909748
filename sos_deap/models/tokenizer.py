"""Load and check a model's tokenizer, and copy it into another folder."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

from transformers import AutoImageProcessor, AutoTokenizer

from sos_deap.errors import InputError
from sos_deap.models.sources import cannot_load, source

_MAX_TOKENS_OF_A_CHARACTER = 1000  # real tokenizers make a few


def load_tokenizer(name: str) -> Any:
    """Load the tokenizer of a model.

    :param name: as for :func:`sos_deap.load`.
    :raises InputError: if there is no tokenizer, or if it is damaged.
    """
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(source(name), trust_remote_code=False)
        tokenizer.model_max_length = int(tokenizer.model_max_length)  # may be a string
    except Exception as error:
        raise cannot_load("tokenizer of", name, error) from error
    if _is_empty(tokenizer):
        raise InputError(
            f"there is no tokenizer in {name}: put the files of the tokenizer that the model was "
            "trained with into the folder"
        )
    _check_tokenizer(name, tokenizer)
    return tokenizer


def _check_tokenizer(name: str, tokenizer: Any) -> None:
    """Raise :class:`InputError` for a tokenizer that would fail or exhaust memory on some text."""
    if tokenizer.model_max_length < 1:
        raise InputError(
            f"the tokenizer of {name} has the model_max_length {tokenizer.model_max_length}: give "
            "a number above 0 in its tokenizer_config.json"
        )
    for character in string.printable:  # one at a time: all together may be too many tokens
        count = len(tokenizer(character, verbose=False)["input_ids"])
        if count > _MAX_TOKENS_OF_A_CHARACTER:
            raise InputError(
                f"the tokenizer of {name} makes {count} tokens of the single character "
                f"{character!r}: download it again, or give another model"
            )


def _is_empty(tokenizer: Any) -> bool:
    """Whether a tokenizer has special tokens only, as transformers builds it without files."""
    kind = type(tokenizer)
    if not kind.vocab_files_names:  # tokenizers of bytes or characters need no files
        return False
    try:
        empty = kind()
    except Exception:  # most classes need files
        return False
    special = {*empty.get_vocab(), *tokenizer.all_special_tokens}
    return special.issuperset(tokenizer.get_vocab())


def save_companions(name: str, folder: Path) -> None:
    """Save a model's tokenizer and image processor, as far as it has them, into a folder.

    :param name: as for :func:`sos_deap.load`.
    :param folder: the folder.
    """

    def load_image_processor(name: str) -> Any:
        return AutoImageProcessor.from_pretrained(source(name), trust_remote_code=False)

    for load in (load_tokenizer, load_image_processor):
        try:
            load(name).save_pretrained(folder)
        except (OSError, ValueError, ImportError, KeyError):
            continue  # a model has one of the two, or neither
