"""Load a model and its tokenizer: from the Hub, a local folder, or the one inside this package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from sos_deap.errors import InputError, first_line, unknown
from sos_deap.models.families import FAMILIES

#: Models that come with this package, by the name the user gives.
BUILTIN = {"builtin:tiny": Path(__file__).resolve().parent.parent / "builtin" / "tiny"}

DTYPES = {
    "auto": None,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True)
class Pretrained:
    """A model ready for evaluation, its tokenizer, and the dtype its weights are stored in."""

    model: PreTrainedModel
    tokenizer: Any
    stored_dtype: torch.dtype


def load_pretrained(name: str, *, device: str = "auto", dtype: str = "auto") -> Pretrained:
    """Load a causal language model.

    :param name: a Hub name, a local folder, or a name in :data:`BUILTIN`. Only safetensors weights
        are read, and no code from the folder is run.
    :param device: ``"auto"`` (a GPU if there is one), ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ...
    :param dtype: a key of :data:`DTYPES`; ``"auto"`` is float32 on a CPU, else as stored.
    :raises InputError: for a model, architecture, device or dtype that is not there.
    """
    place = checked_device(device)
    chosen = checked_dtype(dtype) or (torch.float32 if place.type == "cpu" else None)
    source = _source(name)
    try:
        # False, not None, or transformers asks on the terminal whether to run a folder's code.
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # the Hub's client and the config classes raise many kinds
        raise _cannot_load("model", name, error) from error
    _check_config(name, config)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as error:
        raise _cannot_load("tokenizer of the model", name, error) from error
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            source, dtype=chosen or "auto", use_safetensors=True, trust_remote_code=False
        )
    except Exception as error:
        raise _cannot_load("model", name, error) from error
    return Pretrained(model.to(place).eval(), tokenizer, config.dtype or model.dtype)


def checked_device(device: str) -> torch.device:
    """The device of that name, or an :class:`InputError` if this machine does not have it."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
        return torch.device(device)
    except (RuntimeError, AssertionError) as error:
        cuda = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        mps = ["mps"] if torch.backends.mps.is_available() else []
        have = ", ".join(["cpu", *cuda, *mps])
        raise InputError(f"device {device!r} is not there: this machine has {have}") from error


def checked_dtype(dtype: str) -> torch.dtype | None:
    """The torch dtype of that name, ``None`` for ``"auto"``."""
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    return DTYPES[dtype]


def _source(name: str) -> str:
    if name.startswith("builtin:"):
        if name not in BUILTIN:
            raise unknown("model", name, BUILTIN)
        return str(BUILTIN[name])
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(f"model folder {name} holds no config.json: give a transformers model")
        return str(path)
    # A Hub name is "owner/name" or "name"; anything else was meant as a path.
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or path.exists():
        raise InputError(
            f"model folder {name} does not exist: give a folder, a Hub name or builtin:tiny"
        )
    return name


def _check_config(name: str, config: Any) -> None:
    if config.model_type not in FAMILIES:
        raise unknown("architecture", config.model_type, FAMILIES)
    if getattr(config, "kept_heads", None) is not None:
        raise InputError(f"{name} is already pruned: prune the original, with all the heads to go")
    causal = config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    # The BERT line has causal classes too, for its decoder variant only.
    if not causal or getattr(config, "is_decoder", True) is False:
        raise InputError(
            f"{name} is a {config.model_type} encoder: perplexity needs a causal language model"
        )


def _cannot_load(what: str, name: str, error: Exception) -> InputError:
    return InputError(f"cannot load the {what} {name}: {first_line(error)}")
