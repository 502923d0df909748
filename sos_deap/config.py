"""What a run of the main job depends on: its settings, their flags, files and presets."""

from __future__ import annotations

import logging
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from sos_deap.cli import Parser
from sos_deap.errors import InputError, first_line, one_line, unknown
from sos_deap.tasks.settings import TaskSettings, setting

_log = logging.getLogger(__name__)


@dataclass
class RunConfig:
    """All that a run depends on; every field is a flag and a key of a configuration file."""

    model: str = setting("builtin:tiny", "Hub name or folder of a model, or builtin:tiny.")
    dataset: str = setting(
        "builtin:pydoc",
        "Hub name (name:configuration); .txt, .tsv, .csv, .jsonl, .json or .parquet file, or a "
        "folder of them; builtin:pydoc, the documentation that comes with Python; or builtin:self, "
        "text that the model writes.",
    )
    task: str = setting(
        "auto",
        "What to measure: perplexity (of causal or masked language models), kl (divergence from "
        "the dense model), accuracy, multilabel, summarization, or module:function of your own; "
        "auto is accuracy or multilabel of classifiers, summarization of encoder-decoders, else "
        "perplexity.",
    )
    algorithm: str = setting(
        "sos-repaired",
        "sos (the paper to the letter), sos-repaired; "
        "eaSimple, eaMuPlusLambda, eaMuCommaLambda (DEAP's); "
        "nsga2, nsga3, spea2 (metric and sparsity); "
        "swap, coarse-to-fine, sweep, local, pbil, umda, evopress, bonsai, greedy, one-shot, sleb, "
        "random (at constant sparsity, the maximum); "
        "or module:function of your own with DEAP's signature. "
        "Parameters follow after commas: NAME,key=value,key=value.",
    )
    crossover: str | None = setting(
        None,
        "sign-aware or paper (fitness-weighted), balanced (keeps the sparsity), one-point, "
        "two-point, uniform, any crossover of DEAP by its name, or module:function; with "
        "parameters as above. None is the algorithm's: paper for sos, else sign-aware.",
    )
    mutation: str | None = setting(
        None,
        "flip, swap (as many back as removed), any mutation of DEAP by its name, or "
        "module:function; None is flip.",
    )
    selection: str | None = setting(
        None,
        "tournament, roulette, lexicase, nsga2, nsga3, spea2, any selection of DEAP by its name, "
        "or module:function; None is tournament, or nsga2 for pareto.",
    )
    prior: str | None = setting(
        None,
        "Which heads rather go in new chromosomes, by the mutation flip and after repair: the "
        "least important by wanda, flap, output, magnitude, taylor or ablation (an evaluation a "
        "head); None is all alike. A search at constant sparsity takes it as a parameter: "
        "sweep,prior=wanda.",
    )
    objective: str | None = setting(
        None,
        "Fitness: paper (metric times density), paper-literal, metric, kl (exp(kl) times density), "
        "tradeoff (metric plus weight times sparsity), pareto (metric and sparsity); None is the "
        "algorithm's: pareto for nsga2, nsga3 and spea2, metric at constant sparsity, else paper.",
    )
    tradeoff_weight: float | None = setting(
        None, "tradeoff: what removing everything is worth, in units of the metric; None is 1."
    )
    population_size: int = setting(10, "Chromosomes in the population, N.")
    generations: int = setting(100, "Most generations, G.")
    crossover_rate: float = setting(0.9, "Probability that two parents mate, C.")
    mutation_rate: float = setting(0.01, "Probability that a gene flips: indpb of the mutation.")
    tournament_size: int = setting(
        3, "Chromosomes in a selection tournament: tournsize of the selection."
    )
    initial_sparsity: float = setting(0.05, "Share of heads removed at the start.")
    max_sparsity: float | None = setting(
        None, "Largest share removed, S; None is 0.31 of heads or 0.095 of parameters."
    )
    sparsity_of: str = setting(
        "heads",
        "What sparsity is a share of: heads, or parameters of the whole model (of bytes, that is "
        "the same share).",
    )
    unit: str = setting(
        "head", "What a gene removes: head, or group (a key/value head with all its query heads)."
    )
    layout: str = setting(
        "sliced",
        "What becomes of the removed heads: sliced (cut out), uniform (cut out, as many in every "
        "layer: a stock model), zeroed (kept, with zeros for weights).",
    )
    finalists: int = setting(
        10, "Chromosomes, the best of the search, that --validation_samples choose the winner from."
    )
    store: str | None = setting(
        None,
        "SQLite file of all evaluations, which other runs may share: what is in it is not computed "
        "again; None is store.sqlite in the run folder.",
    )
    threshold: float | None = setting(None, "Stop when a fitness reaches this, tau; None is never.")
    max_evaluations: int | None = setting(
        None, "Stop after so many chromosomes computed, each counted once; None is no limit."
    )
    max_tokens: int | None = setting(
        None, "Stop after so many tokens, over all chromosomes computed; None is no limit."
    )
    max_seconds: float | None = setting(None, "Stop after so long; None is no limit.")
    stagnation: int | None = setting(
        None, "Stop when the best fitness stayed the same for so many generations."
    )
    target_sparsity: float | None = setting(
        None, "Stop when the best chromosome removes this share; None is no such end."
    )
    batch_tokens: int | None = setting(
        None,
        "Most tokens in a forward pass; None is 4096 on a CPU, 32768 on a GPU, and in masked "
        "batches as much of that as is fastest.",
    )
    batching: str = setting(
        "auto",
        "How sub-models go through the model: shared (each layer once for all that agree so far, "
        "without its removed heads), masked (in one batch), or auto, what is possible and faster.",
    )
    reuse_memory: float | None = setting(
        None, "shared: most gigabytes of hidden states kept for sub-models to come; None is 1."
    )
    device: str = setting("auto", "auto (a GPU if there is one), cpu, cuda, cuda:1, ...")
    dtype: str = setting(
        "auto",
        "float32, bfloat16, float16, or auto: on a CPU bfloat16 if it has that in hardware, else "
        "float32; elsewhere as stored. The pruned weights are not rounded.",
    )
    engine: str = setting(
        "serial",
        "Who evaluates: serial (this process), or workers, each with a model of its own: process "
        "(on this machine), scoop (on this one or several), ray (the package ray; its cluster).",
    )
    workers: int | None = setting(
        None, "Workers of the engine; None is one for each GPU, or core where there is none."
    )
    hostfile: str | None = setting(
        None, "scoop: file of hosts, one a line, this one first; None is this machine alone."
    )
    seed: int = setting(0, "Seed of the search and of the choice of calibration examples.")
    profile: bool = setting(
        False, "Write trace.json, one generation for the viewers of PyTorch's profiler."
    )
    tensorboard: bool = setting(
        False,
        "Write TensorBoard's event files into tensorboard/ in the run folder: each generation's "
        "figures, and the heads that stay.",
    )
    quiet: bool = setting(False, "Say nothing but errors.")
    json_lines: bool = setting(
        False,
        "Instead of words write a JSON object a line: the run, each generation, and the result.",
    )
    output_dir: str | None = setting(
        None, "Run folder; None is runs/<time>-<model>-<algorithm>-<seed>."
    )
    resume: str | None = setting(
        None,
        "Run folder of a run that was stopped: go on with it, with its settings. Nothing that it "
        "computed is computed again. Limits of the search may be given anew.",
    )


#: Settings by a name, which may come first on the command line; flags override them. Those under
#: the name of a task are for that task alone.
PRESETS: dict[str, dict[str, Any]] = {
    # What removed least of the quality in the comparisons (README, "Which search"), which were of
    # causal language models: these get the task kl. Its budget is the tokens of the defaults' 1,010
    # evaluations of 8 sequences.
    "best": {
        "algorithm": "sweep,prior=wanda",
        "kl": {"metric": "distillation", "samples": 128, "max_evaluations": 63},
    },
}


#: What may be given anew where a run goes on: none of it changes what has been computed.
RESUMABLE = frozenset(
    [
        "generations",
        "max_evaluations",
        "max_tokens",
        "max_seconds",
        "threshold",
        "stagnation",
        "target_sparsity",
        "reuse_memory",
        "engine",
        "workers",
        "hostfile",
        "profile",
        "tensorboard",
        "quiet",
        "json_lines",
        "resume",
    ]
)


def flags(*parts: RunConfig | TaskSettings) -> list[str]:
    """The flags that differ from the defaults."""
    changed = (
        (field.name, getattr(part, field.name))
        for part in parts
        for field in fields(part)
        if getattr(part, field.name) != field.default
    )
    return [f"--{name}={value}" for name, value in changed]


def parse(arguments: list[str]) -> tuple[RunConfig, TaskSettings]:
    """Read the flags; a first argument without dashes is a preset or a file of them.

    :raises InputError: for an unknown flag, key or preset, or a value of the wrong type.
    """
    from transformers.hf_argparser import HfArgumentParser

    class DataclassParser(Parser, HfArgumentParser):
        """Flags from a dataclass, and errors as everywhere."""

    kinds: Any = [RunConfig, TaskSettings]
    parser = DataclassParser(
        kinds,
        prog="python -m sos_deap.run",
        usage="%(prog)s [best|SETTINGS.yaml|SETTINGS.json] [--FLAG VALUE ...]",
        description="Prune a model's attention heads with a genetic algorithm. Without flags it "
        "prunes the small model inside this package, on text that comes with Python. Settings may "
        "come first: best, the search that kept most of the quality in the comparisons in the "
        "README (of causal language models with the task kl and the metric distillation; other "
        "models and tasks get the search alone), or a file of them.",
        allow_abbrev=False,
    )

    def parsed(arguments: list[str]) -> tuple[RunConfig, TaskSettings]:
        config, settings, rest = parser.parse_args_into_dataclasses(
            arguments, return_remaining_strings=True
        )
        if rest:
            raise unknown("flag", rest[0].partition("=")[0], [f"--{name}" for name in _NAMES])
        return config, settings

    if arguments and not arguments[0].startswith("-"):
        first, *arguments = arguments
        named = _preset(first, parsed(arguments)[0]) if first in PRESETS else _settings(first)
        arguments = [*named, *arguments]
    found = parsed(arguments)
    folder = found[0].resume
    if folder is None:
        return found
    before = _saved(Path(folder))
    return _resumed(folder, parsed(before), parsed([*before, *arguments]))


def _saved(folder: Path) -> list[str]:
    """The settings of a run as flags: of ``config.json``, or the journal where that is damaged."""
    from sos_deap.files.checksummed_lines import read_settings

    written = read_settings(folder / "journal.jsonl")
    path = folder / "config.json"
    if written is None and not path.is_file():
        raise InputError(
            f"run folder {folder} holds no run: give the folder of one, with its config.json"
        )
    try:
        return _settings(str(path))
    except InputError as error:
        if written is None:
            raise
        _log.warning("%s: the settings are taken from journal.jsonl", one_line(str(error)))
        return _as_flags(_checked(written, folder / "journal.jsonl"))


def _resumed(
    folder: str,
    before: tuple[RunConfig, TaskSettings],
    now: tuple[RunConfig, TaskSettings],
) -> tuple[RunConfig, TaskSettings]:
    """The settings of a run that goes on; refuses those that would make it another run."""
    parts: Any = zip(before, now, strict=True)
    for old, new in parts:
        for field in fields(old):
            was, given = getattr(old, field.name), getattr(new, field.name)
            if was != given and field.name not in RESUMABLE:
                raise InputError(
                    f"the run in {folder} has {field.name} {was}, and with {given} it is another: "
                    f"leave --{field.name} out, or begin anew without --resume"
                )
    return now


def _settings(name: str) -> list[str]:
    """A configuration file as flags, so that all are checked by the same code."""
    if not name.endswith((".yaml", ".yml", ".json")):
        raise unknown("preset", name, PRESETS)
    return _as_flags(_from_file(Path(name)))


def _preset(name: str, given: RunConfig) -> list[str]:
    """A preset as flags, with those of the task that is given or fits the model."""
    from sos_deap.tasks.registry import resolved_task

    task = resolved_task(given.task, given.model, causal="kl")
    settings = {k: v for k, v in PRESETS[name].items() if not isinstance(v, dict)}
    return _as_flags({**settings, "task": task, **PRESETS[name].get(task, {})})


def _as_flags(values: dict[str, Any]) -> list[str]:
    return [f"--{key}={value}" for key, value in values.items() if value is not None]


def _from_file(path: Path) -> dict[str, Any]:
    from sos_deap.safe_yaml import plain

    try:
        content = plain(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"configuration file {path} does not exist") from error
    except (OSError, ValueError) as error:
        raise InputError(
            f"configuration file {path} cannot be read: {first_line(error)}"
        ) from error
    if not isinstance(content, dict):
        raise InputError(f"configuration file {path} holds no settings: write lines of name: value")
    return _checked(content, path)


def _checked(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """Settings that a file holds, by name; raises :class:`InputError` for any that are none."""
    for key, value in content.items():
        if key not in _NAMES:
            raise unknown(f"setting in {path}", str(key), _NAMES)
        if isinstance(value, dict | list | set | tuple | bytes) or "\0" in str(value):
            raise InputError(f"{key} in {path} is not one value: write a number or a text")
    return content


_NAMES = [field.name for part in (RunConfig, TaskSettings) for field in fields(part)]
