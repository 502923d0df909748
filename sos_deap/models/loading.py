"""Load a model and its tokenizer: from the Hub, a local folder, or the one inside this package."""

from __future__ import annotations

import logging
import string
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoTokenizer,
    PreTrainedModel,
)
from transformers.utils.logging import get_verbosity, set_verbosity, set_verbosity_error

from sos_deap.errors import InputError, first_line, unknown
from sos_deap.models.families import FAMILIES
from sos_deap.models.generating import padding_token, token_settings
from sos_deap.models.saving import pruned_type
from sos_deap.models.weight_files import stored_dtype

#: Models that come with this package, by the name the user gives.
BUILTIN = {"builtin:tiny": Path(__file__).resolve().parent.parent / "builtin" / "tiny"}

_MOST_OF_ONE = 1000  # tokens of a character; real tokenizers make a few

#: Dtypes by the name the user gives; ``None`` is what suits the device.
DTYPES = {
    "auto": None,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pretrained:
    """A model ready for evaluation, its tokenizer, and the dtype its weights are stored in."""

    model: PreTrainedModel
    tokenizer: Any
    stored_dtype: torch.dtype

    @property
    def is_encoder(self) -> bool:
        """Whether it is of the BERT line, which reads text in both directions."""
        return _is_encoder(self.model.config)


def load(name: str | Path, *, dtype: str | torch.dtype = "auto") -> PreTrainedModel:
    """Read a model, pruned or not, of the class it was saved from.

    :param name: a folder, such as one written by the ``save_pretrained`` of a pruned model, a Hub
        name, or a name in :data:`BUILTIN`. Only safetensors weights are read, and no code in the
        folder is run.
    :param dtype: as for ``from_pretrained``; ``"auto"`` is the one that the files hold the weights
        in, whatever the config names.
    :returns: the model, in evaluation mode.
    :raises InputError: if the model is missing, damaged, or of an unknown class.
    """
    config = read_config(str(name))
    return _read_weights(str(name), config, _own_class(str(name), config), dtype)


def load_pretrained(
    name: str, purpose: str = "language modelling", *, device: str = "auto", dtype: str = "auto"
) -> Pretrained:
    """Load a model that is to be pruned, and its tokenizer.

    :param name: as for :func:`load`.
    :param purpose: a key of :data:`PURPOSES`.
    :param device: ``"auto"`` (a GPU if there is one), ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ...
    :param dtype: a key of :data:`DTYPES`; ``"auto"`` is that of :func:`cpu_dtype` on a CPU, else as
        stored.
    :raises InputError: for a model, architecture, device or dtype that is not there, and for a
        model that is not for the purpose.
    """
    place = checked_device(device)
    chosen = checked_dtype(dtype) or (cpu_dtype() if place.type == "cpu" else None)
    config = read_config(name)
    check_prunable(name, config)
    stock = PURPOSES[purpose](name, config)
    model: Any = _read_weights(name, config, stock, chosen or "auto")
    tokenizer = load_tokenizer(name)
    # Without one, stock classes take batches of one text only.
    model.config.pad_token_id = padding_token(model, tokenizer)
    stored = stored_dtype(_source(name), config) or model.dtype
    return Pretrained(model.to(place), tokenizer, stored)


def load_as(name: str, kind: type, dtype: str) -> PreTrainedModel:
    """A model read as a certain class, on the CPU in a certain dtype; raises as :func:`load`."""
    return _read_weights(name, read_config(name), kind, dtype)


def load_encoder(name: str) -> tuple[PreTrainedModel, Any]:
    """A model that turns text into vectors, without a task head, and its tokenizer.

    :raises InputError: if it is not there or is none.
    """
    config = read_config(name)
    if not _is_encoder(config):
        raise InputError(f"{name} is a {config.model_type} model: give an encoder such as RoBERTa")
    return _read_weights(name, config, MODEL_MAPPING[type(config)], "float32"), load_tokenizer(name)


def load_tokenizer(name: str) -> Any:
    """The tokenizer that comes with a model; raises :class:`InputError` if there is none."""
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(_source(name), trust_remote_code=False)
        tokenizer.model_max_length = int(tokenizer.model_max_length)  # a file may have it as text
    except Exception as error:
        raise _cannot_load("tokenizer of", name, error) from error
    if _is_made_up(tokenizer):
        raise InputError(
            f"there is no tokenizer in {name}: put the files of the tokenizer that the model was "
            "trained with into the folder"
        )
    _check_tokenizer(name, tokenizer)
    return tokenizer


def _check_tokenizer(name: str, tokenizer: Any) -> None:
    """Raise :class:`InputError` for a tokenizer that would fail, or fill the memory, on a text."""
    if tokenizer.model_max_length < 1:
        raise InputError(
            f"the tokenizer of {name} has the model_max_length {tokenizer.model_max_length}: give "
            "a number above 0 in its tokenizer_config.json"
        )
    for character in string.printable:  # each alone: all together might be too much
        count = len(tokenizer(character, verbose=False)["input_ids"])
        if count > _MOST_OF_ONE:
            raise InputError(
                f"the tokenizer of {name} makes {count} tokens of the one character "
                f"{character!r}: download it again, or give another model"
            )


def _is_made_up(tokenizer: Any) -> bool:
    """Whether it knows special tokens only: transformers makes such where there are no files."""
    kind = type(tokenizer)
    if not kind.vocab_files_names:  # tokens that are bytes or characters need no files
        return False
    try:
        made_up = kind()
    except Exception:  # most classes need files
        return False
    special = {*made_up.get_vocab(), *tokenizer.all_special_tokens}
    return special.issuperset(tokenizer.get_vocab())


def save_companions(name: str, folder: Path) -> None:
    """Put what a model is fed through into a folder: its tokenizer, its image settings."""

    def image_settings(name: str) -> Any:
        return AutoImageProcessor.from_pretrained(_source(name), trust_remote_code=False)

    for read in (load_tokenizer, image_settings):
        try:
            read(name).save_pretrained(folder)
        except (OSError, ValueError, ImportError, KeyError):
            continue  # a model has one or the other, or neither


def check_prunable(name: str, config: Any) -> None:
    """Raise :class:`InputError` for a model that is quantised or already pruned."""
    if getattr(config, "kept_heads", None) is not None:
        raise InputError(f"{name} is already pruned: prune the original, with all the heads to go")
    if quantised := getattr(config, "quantization_config", None):
        how = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
        raise InputError(f"{name} is quantised ({how}): prune the original, then quantise that")


def read_config(name: str) -> Any:
    """The config of a model; raises :class:`InputError` if it is missing or damaged."""
    try:
        # False, not None, or transformers asks on the terminal whether to run a folder's code.
        with _silent():
            return AutoConfig.from_pretrained(_source(name), trust_remote_code=False)
    except InputError:
        raise
    except Exception as error:  # the Hub's client and the config classes raise many kinds
        raise _cannot_load("config.json of", name, error) from error


def _read_weights(name: str, config: Any, stock: Any, dtype: str | torch.dtype) -> PreTrainedModel:
    """Read a model, and raise :class:`InputError` rather than make weights up."""
    pruned = getattr(config, "kept_heads", None) is not None
    if pruned and stock.config_class.model_type not in FAMILIES:
        raise unknown(f"architecture of the pruned {name}", config.model_type, FAMILIES)
    kind: Any = pruned_type(stock) if pruned else stock
    try:
        with _silent():
            stored = stored_dtype(_source(name), config)
            model, info = kind.from_pretrained(
                _source(name),
                dtype=stored or "auto" if dtype == "auto" else dtype,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except InputError:
        raise
    except Exception as error:  # a damaged folder fails in many ways, deep inside three libraries
        raise _cannot_load("model", name, error) from error
    if not pruned:
        info.pop("unexpected_keys", None)  # such as another task's head
    if wrong := {what: sorted(map(str, names)) for what, names in info.items() if names}:
        what, names = next(iter(wrong.items()))
        saved_as = (config.architectures or ["another class"])[0]
        if what == "missing_keys" and saved_as != stock.__name__:
            raise InputError(
                f"{name} was saved as {saved_as} and lacks {len(names)} weights of "
                f"{stock.__name__}, {names[0]} among them: give a model that has them"
            )
        raise InputError(
            f"the weights of {name} do not fit its config.json: {len(names)} "
            f"{what.replace('_', ' ')}, {names[0]} among them; save or download the model again"
        )
    _tidy(model)
    result: PreTrainedModel = model.eval()
    return result


def _tidy(model: Any) -> None:
    """Leave out settings of a folder that stock classes read and then do not save."""
    # They are about what a call returns; tasks read outputs by name.
    model.config.output_attentions = model.config.output_hidden_states = False
    model.config.return_dict = True
    own = getattr(model, "generation_config", None)
    try:
        if own is not None:
            own.validate(strict=True)
    except Exception as error:
        _log.warning("only the token ids of generation settings are kept: %s", first_line(error))
        model.generation_config = token_settings(model)


@contextmanager
def _silent() -> Iterator[None]:
    """Without transformers' reports of what does not fit: here that is an error of its own."""
    before = get_verbosity()
    set_verbosity_error()
    try:
        yield
    finally:
        set_verbosity(before)


def checked_device(device: str) -> torch.device:
    """The device of that name, or an :class:`InputError` if this machine does not have it."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.ones(1, device=device).item()  # the device meta has shapes but no values
        return torch.device(device)
    except (RuntimeError, AssertionError) as error:
        cuda = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        mps = ["mps"] if torch.backends.mps.is_available() else []
        have = ", ".join(["cpu", *cuda, *mps])
        raise InputError(f"device {device!r} is not there: this machine has {have}") from error


def cpu_dtype() -> torch.dtype:
    """The dtype to search in on this CPU: bfloat16 if it has that in hardware, else float32."""
    able: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # not in older torch
    has = able.get("amx_bf16") or able.get("avx512_bf16")
    return torch.bfloat16 if has else torch.float32


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
    typed = name.startswith((".", "~")) or name.endswith("/") or name.count("/") > 1
    if path.is_absolute() or typed or path.exists():
        raise InputError(
            f"model folder {name} does not exist: give a folder, a Hub name or builtin:tiny"
        )
    return name


def _is_encoder(config: Any) -> bool:
    # The BERT line has causal classes too, for its decoder variant only.
    decoder = config.is_encoder_decoder or getattr(config, "is_decoder", False)
    return type(config) in MODEL_FOR_MASKED_LM_MAPPING and not decoder


def _language_model(name: str, config: Any) -> Any:
    if _is_encoder(config):
        return MODEL_FOR_MASKED_LM_MAPPING[type(config)]
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and not config.is_encoder_decoder:
        return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    what = "encoder-decoder" if config.is_encoder_decoder else "model"
    raise InputError(
        f"{name} is a {config.model_type} {what}: perplexity needs a language model without an "
        "encoder beside it, or an encoder alone"
    )


def kind_of(name: str) -> str:
    """What a model was saved as, by its config.json alone.

    :returns: ``"classifier"`` or ``"multi-label classifier"`` of sequences, ``"encoder-decoder"``,
        ``"encoder"``, or ``"causal"`` for any other.
    :raises InputError: if the config.json is missing or damaged.
    """
    config = read_config(name)
    names = config.architectures
    if isinstance(names, list) and str(names[:1]).endswith("ForSequenceClassification']"):
        several = config.problem_type == "multi_label_classification"
        return "multi-label classifier" if several else "classifier"
    if config.is_encoder_decoder:
        return "encoder-decoder"
    return "encoder" if _is_encoder(config) else "causal"


def _writer(name: str, config: Any) -> Any:
    if config.is_encoder_decoder and type(config) in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING:
        return MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING[type(config)]
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and not _is_encoder(config):
        return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    raise InputError(
        f"{name} is a {config.model_type} encoder and writes no text: summarization needs a causal "
        "or an encoder-decoder model"
    )


def _classifier(name: str, config: Any) -> Any:
    stock: Any = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(type(config), None)
    own = _own_class(name, config)
    if stock is None or not issubclass(own, stock):
        raise InputError(
            f"{name} is a {own.__name__}, without a classifier: give a model that was fine-tuned "
            f"for sequence classification{f' ({stock.__name__})' if stock else ''}"
        )
    if config.num_labels < 2:
        raise InputError(f"{name} has one label, for regression: classification needs at least 2")
    return stock


def _own_class(name: str, config: Any) -> Any:
    """The class that a model was saved from."""
    architectures = config.architectures
    architecture = architectures[0] if isinstance(architectures, list) and architectures else None
    stock = getattr(transformers, architecture, None) if isinstance(architecture, str) else None
    if not (isinstance(stock, type) and issubclass(stock, PreTrainedModel)):
        raise InputError(
            f"config.json of {name} names the model class {architecture!r}, unknown to transformers"
        )
    return stock


#: What a model can be for: from its name and config to the class it is read as.
PURPOSES: dict[str, Callable[[str, Any], Any]] = {
    "any": _own_class,
    "classification": _classifier,
    "generation": _writer,
    "language modelling": _language_model,
}


def _cannot_load(what: str, name: str, error: Exception) -> InputError:
    return InputError(f"cannot load the {what} {name}: {first_line(error)}")
