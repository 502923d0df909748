"""The settings of a comparison, from flags and YAML files, checked before anything is loaded."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.variants.flags import FLAGS, OWN, RUN, SHARED, flag_names, refuse_own
from sos_deap.cli import Parser
from sos_deap.errors import InputError, first_line, unknown
from sos_deap.safe_yaml import plain

#: The variants that come with the benchmark.
VARIANTS_FILE = Path(__file__).with_name("variants.yaml")

#: Default number of held-out examples: 16 k tokens with 128 tokens per sequence.
HELDOUT_SAMPLES = 128

_LISTED = "--help lists the flags of a comparison, and python -m sos_deap.run --help those of a run"

#: Upper bounds: larger values exhaust memory before anything is compared.
_MOST = {"seeds": 10_000, "workers": 1_000, "budget": 10**12, "budget_tokens": 10**15}


@dataclass(frozen=True)
class Settings:
    """The settings of a comparison.

    Every combination of ``models``, ``datasets``, ``budgets`` and ``sparsities`` is a problem.

    :param variants: the flags of a run that each variant sets, by name of the variant.
    :param budgets: in evaluations, or in tokens if ``in_tokens``.
    :param common: flags of a run for all variants.
    """

    models: tuple[str, ...]
    datasets: tuple[str, ...]
    variants: dict[str, dict[str, str]]
    budgets: tuple[int, ...]
    in_tokens: bool
    sparsities: tuple[float, ...]
    seeds: tuple[int, ...]
    common: dict[str, str]
    heldout_task: str
    heldout_metric: str | None
    reference: str
    target: float | None
    control: str | None
    ioh: bool
    workers: int
    store: Path
    output_dir: Path


def parse(arguments: list[str]) -> Settings:
    """Parse the flags and read the files that they name.

    :raises InputError: for an unknown name or a value out of range.
    """
    given, rest = _parser().parse_known_args(arguments)
    values, common = vars(given), _pairs(rest)
    if "config" in values:
        from_file, from_file_common = _config(Path(values["config"]))
        values, common = {**from_file, **values}, {**from_file_common, **common}
    return _settings(values, common)


def _parser() -> Parser:
    parser = Parser(
        prog="python -m benchmarks.variants",
        description="Compare variants of the search at equal budgets, with significance tests. "
        "Other flags of sos_deap.run, such as --seqlen 128, apply to all variants.",
        epilog=f"Variants: {', '.join(_variants_in(VARIANTS_FILE))}.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    for name, options in FLAGS.items():
        repeated = {"action": "extend"} if "nargs" in options else {}
        parser.add_argument(f"--{name}", **{**options, **repeated})
    return parser


def _pairs(rest: list[str]) -> dict[str, str]:
    """Return the flags of a run among the arguments, by name."""
    pairs: dict[str, str] = {}
    tokens = iter(rest)
    for token in tokens:
        flag, equals, value = token.partition("=")
        name = flag.removeprefix("--")
        if not token.startswith("--") or name not in RUN:
            raise unknown("flag", flag, [f"--{name}" for name in flag_names()], _LISTED)
        refuse_own(name, "the command line")
        if not equals and (value := next(tokens, "")) == "":
            raise InputError(f"--{name} has no value: give one after it")
        pairs[name] = value
    return pairs


def _config(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """Return a configuration file's flags of the benchmark and its flags of a run."""
    tokens, common = [], {}
    for name, value in _mapping(path, "configuration file").items():
        if name not in flag_names() - {"config"}:
            raise unknown(f"setting in {path}", name, flag_names() - {"config"}, _LISTED)
        if name not in FLAGS:
            common[name] = _text(value)
        elif isinstance(value, bool):
            tokens += [f"--{name}"] if value else []
        else:
            parts = value if isinstance(value, list) else [value]
            tokens += [f"--{name}", *map(_text, parts)]
    return vars(_parser().parse_args(tokens)), common


def _mapping(path: Path, what: str) -> dict[str, Any]:
    try:
        content = plain(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{what} {path} does not exist") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{what} {path} cannot be read: {first_line(error)}") from error
    if not isinstance(content, dict) or not content:
        raise InputError(f"{what} {path} is empty: write lines of name: value")
    return {name: value for name, value in content.items() if value is not None}


def _text(value: Any) -> str:
    return str(value)


def _variants_in(path: Path) -> dict[str, dict[str, str]]:
    """Return the variants of a file, each with the flags it sets."""
    variants = {}
    for name, flags in _mapping(path, "variants file").items():
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]*", name):
            raise InputError(
                f"variant {name!r} in {path}: use letters, digits and _ . + - in its name"
            )
        if not isinstance(flags, dict):
            raise InputError(f"variant {name} in {path} is {flags!r}: write {{flag: value, ...}}")
        for flag in flags:
            refuse_own(flag, f"variant {name} in {path}")
            if flag in SHARED:
                raise InputError(
                    f"variant {name} in {path} sets {flag}, which all variants must share: "
                    f"give --{flag} on the command line"
                )
            if flag not in RUN:
                raise unknown(f"flag of variant {name} in {path}", flag, RUN - OWN, _LISTED)
        variants[name] = {k: _text(v) for k, v in flags.items() if v is not None}
    return variants


def _settings(values: Mapping[str, Any], common: dict[str, str]) -> Settings:
    if "output_dir" not in values:
        raise InputError("--output_dir is missing: name a folder for the results")
    if "budget" in values and "budget_tokens" in values:
        raise InputError("--budget and --budget_tokens are both given: give one of them")
    _check(values)
    variants = _chosen(values)
    folder = Path(values["output_dir"])
    first, seeds = values.get("first_seed", 0), values.get("seeds", 15)
    reference = values.get("reference", next(iter(variants)))
    for role, name in (("reference", reference), ("control", values.get("control", reference))):
        if name not in variants:
            raise unknown(role, name, variants)
    tasks = {name: (common | flags).get("task", "perplexity") for name, flags in variants.items()}
    return Settings(
        models=_distinct(values.get("model", ["builtin:tiny"])),
        datasets=_distinct(values.get("dataset", ["builtin:pydoc"])),
        variants=variants,
        budgets=_distinct(values.get("budget_tokens", values.get("budget", [1000]))),
        in_tokens="budget_tokens" in values,
        sparsities=_distinct(values.get("sparsity", [0.31])),
        seeds=tuple(range(first, first + seeds)),
        common={"heldout_samples": str(HELDOUT_SAMPLES), **common},
        heldout_task=values.get("heldout_task") or _heldout_task(tasks),
        heldout_metric=values.get("heldout_metric"),
        reference=reference,
        target=values.get("target"),
        control=values.get("control"),
        ioh=values.get("ioh", False),
        workers=values.get("workers", 1),
        store=Path(values.get("store", folder / "store.sqlite")),
        output_dir=folder,
    )


def _distinct(values: Iterable[Any]) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(values))


def _chosen(values: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Return the variants to compare."""
    known = _variants_in(VARIANTS_FILE)
    if "variants_file" in values:
        known |= _variants_in(Path(values["variants_file"]))
    given = ",".join(values.get("variants", ["sos,sos-repaired,swap"])).split(",")
    names = _distinct(name.strip() for name in given if name.strip())
    for name in names:
        if name not in known:
            raise unknown("variant", name, known)
    if not names:
        raise InputError(f"--variants is empty: known are {', '.join(sorted(known))}")
    return {name: known[name] for name in names}


def _heldout_task(tasks: Mapping[str, str]) -> str:
    """Return the task whose metrics compare all variants."""
    distinct = set(tasks.values())
    if len(distinct) == 1:
        return distinct.pop()
    if distinct == {"kl", "perplexity"}:
        return "kl"  # its metrics include perplexity
    listed = ", ".join(f"{name} {task}" for name, task in tasks.items())
    raise InputError(f"the variants have different tasks ({listed}): give --heldout_task")


def _check(values: Mapping[str, Any]) -> None:
    """Raise :class:`InputError` for a number out of range."""
    for name, most in _MOST.items():
        given = values.get(name, 1)
        for value in given if isinstance(given, list) else [given]:
            if not 1 <= value <= most:
                raise InputError(f"{name} is {_shown(value)}: give a number from 1 to {most:,}")
    first, last = values.get("first_seed", 0), 2**32 - values.get("seeds", 15)
    if not 0 <= first <= last:
        raise InputError(f"first_seed is {_shown(first)}: give a number from 0 to {last:,}")
    for sparsity in values.get("sparsity", []):
        if not 0 < sparsity < 1:
            raise InputError(f"sparsity is {sparsity}: give a number between 0 and 1")
    if not math.isfinite(values.get("target", 0)):
        raise InputError(f"target is {values['target']}: give a finite metric")


def _shown(number: int) -> str:
    """Format a number; one of more than 30 digits is abbreviated."""
    text = str(number)
    return text if len(text) <= 30 else f"{text[:10]}... ({len(text)} digits)"
