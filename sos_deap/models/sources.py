"""Find a model by the name that the user gives, and read its config."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig
from transformers.utils.logging import get_verbosity, set_verbosity, set_verbosity_error

from sos_deap.errors import InputError, first_line, unknown
from sos_deap.models.gguf_files import folder_of, is_gguf

#: Models that are part of this package, by the name the user gives.
BUILTIN = {"builtin:tiny": Path(__file__).resolve().parent.parent / "builtin" / "tiny"}


def source(name: str) -> str:
    """Return the folder or Hub name that transformers reads a model from.

    :param name: a folder, a Hub name, a GGUF file, or a key of :data:`BUILTIN`.
    :raises InputError: for an unknown built-in model, for a folder that does not exist or has no
        config.json, and for a GGUF file that cannot be read.
    """
    if name.startswith("builtin:"):
        if name not in BUILTIN:
            raise unknown("model", name, BUILTIN)
        return str(BUILTIN[name])
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(f"model folder {name} holds no config.json: give a transformers model")
        return str(path)
    if is_gguf(name):
        return str(folder_of(name))
    # A Hub name is "owner/name" or "name"; anything else is meant as a path.
    is_path = name.startswith((".", "~")) or name.endswith("/") or name.count("/") > 1
    if path.is_absolute() or is_path or path.exists():
        raise InputError(
            f"model folder {name} does not exist: give a folder, a Hub name or builtin:tiny"
        )
    return name


def read_config(name: str) -> Any:
    """Read the config of a model; of one that reads images or sound, that of its language model.

    :param name: a folder, a Hub name, a GGUF file, or a key of :data:`BUILTIN`.
    :raises InputError: if the config is missing or damaged.
    """
    try:
        # With None, transformers would ask on the terminal whether to run the folder's code.
        with quiet():
            config = AutoConfig.from_pretrained(source(name), trust_remote_code=False)
            return _language_model(config) or config
    except InputError:
        raise
    except Exception as error:  # the Hub's client and config classes raise many types
        raise cannot_load("config.json of", name, error) from error


def _language_model(config: Any) -> Any:
    """Return the config of the language model in a multimodal model, ``None`` without one."""
    text = config.get_text_config(decoder=True)
    stock: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(text), None)
    if text is config or stock is None or not hasattr(config, "vision_config"):
        return None
    text.architectures = [stock.__name__]
    return text


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress transformers' warnings inside the context; the callers raise errors instead."""
    before = get_verbosity()
    set_verbosity_error()
    try:
        yield
    finally:
        set_verbosity(before)


def cannot_load(what: str, name: str, error: Exception) -> InputError:
    """Return the error for a part of a model that transformers fails to load.

    :param what: the part, such as ``"tokenizer of"``.
    :param name: the model's name.
    :param error: the error that transformers raised.
    """
    return InputError(f"cannot load the {what} {name}: {first_line(error)}")
