"""The settings of a run, and how the command line gives them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sos_deap.budget_settings import BudgetSettings
from sos_deap.flags import FlagParser
from sos_deap.loss_settings import LossSettings
from sos_deap.presets import PRESETS, named_flags
from sos_deap.quantize_settings import QuantizeSettings
from sos_deap.refit_settings import RefitSettings
from sos_deap.settings_files import check_resumed, saved_flags
from sos_deap.tasks.settings import TaskSettings, setting


@dataclass(frozen=True)
class RunConfig(QuantizeSettings, RefitSettings, LossSettings, BudgetSettings):
    """All settings of a run; every field is a flag and a key of a configuration file."""

    model: str = setting(
        "builtin:tiny",
        "data",
        "Hub name, folder or GGUF file of a model, or builtin:tiny.",
        common=True,
    )
    dataset: str = setting(
        "builtin:pydoc",
        "data",
        "Hub name (name:configuration); .txt, .tsv, .csv, .jsonl, .json or .parquet file, or a "
        "folder of them; builtin:pydoc (the documentation in Python's standard library); or "
        "builtin:self (text that the model generates).",
        common=True,
    )
    task: str = setting(
        "auto",
        "task",
        "What to measure: perplexity (of causal or masked language models), kl (divergence from "
        "the dense model), accuracy, multilabel, summarization, multiple-choice, or "
        "module:function of your own; auto is accuracy or multilabel for classifiers, "
        "summarization for encoder-decoders, and perplexity for other models.",
        common=True,
    )
    algorithm: str = setting(
        "sos-repaired",
        "search",
        "sos (the paper to the letter), sos-repaired; "
        "eaSimple, eaMuPlusLambda, eaMuCommaLambda (DEAP's); "
        "nsga2, nsga3, spea2 (metric and sparsity); "
        "swap, coarse-to-fine, sweep, local, pbil, umda, evopress, bonsai, greedy, one-shot, sleb, "
        "two-stage, knapsack, random (at constant sparsity, the maximum); "
        "or module:function of your own, with DEAP's signature or a generator. "
        "Parameters follow after commas: NAME,key=value,key=value.",
        common=True,
    )
    crossover: str | None = setting(
        None,
        "search",
        "sign-aware or paper (fitness-weighted), balanced (keeps the sparsity), one-point, "
        "two-point, uniform, any crossover of DEAP by its name, or module:function; with "
        "parameters as for --algorithm.",
        unset="the algorithm's: paper for sos, else sign-aware",
    )
    mutation: str | None = setting(
        None,
        "search",
        "flip, swap (restores as much as it removes), any mutation of DEAP by its name, or "
        "module:function.",
        unset="flip",
    )
    selection: str | None = setting(
        None,
        "search",
        "tournament, roulette, lexicase, nsga2, nsga3, spea2, any selection of DEAP by its name, "
        "or module:function.",
        unset="the objective's: nsga2 for pareto, else tournament",
    )
    prior: str | None = setting(
        None,
        "search",
        "Bias removal towards the genes ranked least important by wanda, flap, output, magnitude, "
        "taylor or ablation (one evaluation per gene): in new chromosomes, by the mutation flip, "
        "and after repair. A search at constant sparsity takes the prior as a parameter: "
        "sweep,prior=wanda.",
        unset="all genes alike",
    )
    objective: str | None = setting(
        None,
        "task",
        "Fitness: paper (metric times density), paper-literal, metric, kl (exp(kl) times density), "
        "tradeoff (metric plus weight times sparsity), or pareto (metric and sparsity).",
        unset="the algorithm's: pareto for nsga2, nsga3 and spea2, metric at constant sparsity, "
        "else paper",
        common=True,
    )
    tradeoff_weight: float | None = setting(
        None, "task", "tradeoff: weight of the sparsity, in units of the metric.", unset="1"
    )
    population_size: int = setting(10, "search", "Chromosomes in the population, N.", common=True)
    generations: int = setting(100, "genes", "Most generations, G.", common=True)
    crossover_rate: float = setting(0.9, "search", "Probability that two parents mate, C.")
    mutation_rate: float = setting(
        0.01, "search", "Probability that a gene flips: indpb of the mutation."
    )
    tournament_size: int = setting(
        3, "search", "Chromosomes in a selection tournament: tournsize of the selection."
    )
    initial_sparsity: float = setting(
        0.05, "search", "Share of genes removed in the initial population."
    )
    layout: str = setting(
        "sliced",
        "genes",
        "How units are removed: sliced (their weights are cut out), uniform (cut out, the same "
        "number in every layer, which gives a stock model), or zeroed (weights set to zero).",
    )
    finalists: int = setting(
        10,
        "search",
        "Best chromosomes of the search, among which --validation_samples choose the winner.",
    )
    store: str | None = setting(
        None,
        "evaluation",
        "SQLite file of all evaluations, which several runs may share; evaluations in it are not "
        "computed again.",
        unset="store.sqlite in the run folder",
    )
    threshold: float | None = setting(
        None, "genes", "Stop when a fitness reaches this, tau.", unset="never"
    )
    max_evaluations: int | None = setting(
        None, "genes", "Stop after this many unique evaluations.", unset="never"
    )
    max_tokens: int | None = setting(
        None, "genes", "Stop after this many tokens, over all evaluations.", unset="never"
    )
    max_seconds: float | None = setting(
        None, "genes", "Stop after this many seconds.", unset="never"
    )
    stagnation: int | None = setting(
        None,
        "genes",
        "Stop after this many generations without a change of the best fitness.",
        unset="never",
    )
    target_sparsity: float | None = setting(
        None, "genes", "Stop when the best chromosome removes this share.", unset="never"
    )
    batch_tokens: int | None = setting(
        None,
        "evaluation",
        "Most tokens in a forward pass.",
        unset="4096 on a CPU, 32768 on a GPU; masked batches use as many of these as is fastest",
    )
    batching: str = setting(
        "auto",
        "evaluation",
        "How sub-models are evaluated together: shared (each layer is computed once for all "
        "sub-models that are equal up to it, without its removed units), masked (all in one "
        "batch), or auto (the faster of those that the model allows).",
    )
    reuse_memory: float | None = setting(
        None, "evaluation", "shared: most gigabytes of hidden states kept for reuse.", unset="1"
    )
    device: str = setting(
        "auto", "evaluation", "auto (a GPU if there is one), cpu, cuda, cuda:1, ...", common=True
    )
    dtype: str = setting(
        "auto",
        "evaluation",
        "float32, bfloat16, float16, or auto: on a CPU bfloat16 if the hardware supports it, else "
        "float32; on other devices as stored. The pruned weights are not rounded.",
    )
    engine: str = setting(
        "serial",
        "engine",
        "Where sub-models are evaluated: serial (in this process), or in workers with a model "
        "each: process (on this machine), scoop (on this machine or several), ray (the package "
        "ray; its cluster).",
        common=True,
    )
    workers: int | None = setting(
        None,
        "engine",
        "Number of workers of the engine.",
        unset="one per GPU, or per core without GPUs",
    )
    hostfile: str | None = setting(
        None,
        "engine",
        "scoop: file of hosts, one a line, this machine first.",
        unset="this machine only",
    )
    seed: int = setting(
        0, "search", "Seed of the search and of the choice of calibration examples.", common=True
    )
    profile: bool = setting(
        False, "output", "Write trace.json, one generation for the viewers of PyTorch's profiler."
    )
    tensorboard: bool = setting(
        False, "output", "Write TensorBoard event files into tensorboard/ in the run folder."
    )
    quiet: bool = setting(False, "output", "Print errors only.")
    json_lines: bool = setting(
        False, "output", "Print JSON lines instead of text: the run, each generation, the result."
    )
    output_dir: str | None = setting(
        None, "output", "Run folder.", unset="runs/<time>-<model>-<algorithm>-<seed>", common=True
    )
    resume: str | None = setting(
        None,
        "output",
        "Run folder of an interrupted run to resume, with its settings and all that it computed. "
        "Limits of the search may be changed.",
        unset="start a new run",
    )


#: Settings that may change when a run is resumed: none of them changes what has been computed.
RESUMABLE = frozenset(
    [
        *("generations", "max_evaluations", "max_tokens", "max_seconds"),
        *("threshold", "stagnation", "target_sparsity"),
        *("reuse_memory", "engine", "workers", "hostfile"),
        *("profile", "tensorboard", "quiet", "json_lines", "resume"),
    ]
)


def _nothing(config: RunConfig) -> None:
    """Print nothing."""


def parse(
    arguments: list[str], loading: Callable[[RunConfig], None] = _nothing
) -> tuple[RunConfig, TaskSettings]:
    """Return the settings that command-line arguments give.

    :param arguments: flags; a first argument without dashes is a key of
        :data:`sos_deap.presets.PRESETS` or a YAML or JSON file of settings, which the flags
        override.
    :param loading: called once, with the settings so far, before a preset reads the config of the
        model, for which libraries are imported that take seconds.
    :raises InputError: for an unknown flag, key or preset, a value of the wrong type, and for a
        change to a resumed run that is not in :data:`RESUMABLE`.
    """
    parser = FlagParser(
        (RunConfig, TaskSettings),
        prog="python -m sos_deap.run",
        usage="%(prog)s [best|best-heads|SETTINGS.yaml|SETTINGS.json] [--FLAG VALUE ...]",
        description="Prune a model with a genetic algorithm. Without flags, the "
        "small model in this package is pruned, on text from Python's standard library. The "
        "first argument may be a file of settings; best-heads: the search that kept most of the "
        "quality in the comparisons in the README, of causal language models on heads; or best: "
        "the same search on heads (or key/value groups) and channels (or experts), for causal "
        "language models and classifiers, with a refit.",
    )
    if arguments and not arguments[0].startswith("-"):
        first, *arguments = arguments
        given: RunConfig = parser.read(arguments)[0]
        if first in PRESETS:
            loading(given)
            loading = _nothing
        bounded = given.max_loss is not None
        preset = named_flags(first, given.model, given.task, parser.names, bounded)
        arguments = [*preset, *arguments]
    config, settings = parser.read(arguments)
    if config.resume is None:
        loading(config)
        return config, settings
    before = saved_flags(Path(config.resume), parser.names)
    now = parser.read([*before, *arguments])
    check_resumed(config.resume, parser.read(before), now, RESUMABLE)
    loading(now[0])
    return now[0], now[1]
