"""The main job from end to end: load, search, prune, save, report.

This is the only file that sees the configuration; everything it calls takes plain values.
"""

from __future__ import annotations

import random
import re
import sys
import time
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import TYPE_CHECKING, Any, NoReturn

from sos_deap.errors import InputError, first_line, unknown

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from sos_deap.evaluator import Evaluator


def _flag(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class RunConfig:
    """All that a run depends on; every field is a flag and a key of a configuration file."""

    model: str = _flag("builtin:tiny", "Hub name or folder of a causal LM, or builtin:tiny.")
    dataset: str = _flag(
        "builtin:pydoc",
        "Hub name (name:configuration), .txt file, folder, or builtin:pydoc, the documentation "
        "that comes with Python.",
    )
    task: str = _flag("perplexity", "What to measure: perplexity.")
    algorithm: str = _flag(
        "sos-repaired",
        "sos (the paper to the letter), sos-repaired, eaSimple, eaMuPlusLambda, eaMuCommaLambda.",
    )
    objective: str = _flag("paper", "Fitness: paper (metric times density), paper-literal, metric.")
    population_size: int = _flag(10, "Chromosomes in the population, N.")
    generations: int = _flag(100, "Most generations, G.")
    crossover_rate: float = _flag(0.9, "Probability that two parents mate, C.")
    mutation_rate: float = _flag(0.01, "Probability that a gene flips.")
    tournament_size: int = _flag(3, "Chromosomes in a selection tournament.")
    initial_sparsity: float = _flag(0.05, "Share of heads removed at the start.")
    max_sparsity: float = _flag(0.31, "Largest share of heads removed, S.")
    threshold: float | None = _flag(None, "Stop when a fitness reaches this, tau; None is never.")
    seqlen: int | None = _flag(
        None, "Tokens in a sequence; None is the model's longest, at most 2048."
    )
    samples: int = _flag(8, "Calibration sequences that score each sub-model.")
    batch_tokens: int | None = _flag(
        None, "Most tokens in a forward pass; None is 4096 on a CPU, 32768 on a GPU."
    )
    device: str = _flag("auto", "auto (a GPU if there is one), cpu, cuda, cuda:1, ...")
    dtype: str = _flag(
        "auto", "auto (float32 on a CPU, else as stored), float32, bfloat16, float16."
    )
    seed: int = _flag(0, "Seed of the search and of the choice of calibration sequences.")
    output_dir: str | None = _flag(
        None, "Run folder; None is runs/<time>-<model>-<algorithm>-<seed>."
    )


def run(config: RunConfig) -> Path:
    """Search, prune, save and report.

    :param config: the settings.
    :returns: the run folder.
    :raises InputError: for bad settings, before anything is written.
    """
    # Imported here, so that --help does not wait for torch.
    from sos_deap.evaluator import Evaluator
    from sos_deap.outcome import prune_and_measure, quality, size
    from sos_deap.report import claim, free_folder, table, write_json

    _check(config)
    folder = free_folder(_folder(config))
    evaluator = Evaluator.from_pretrained(
        config.model,
        dataset=config.dataset,
        task=config.task,
        objective=config.objective,
        seqlen=config.seqlen,
        samples=config.samples,
        batch_tokens=config.batch_tokens,
        device=config.device,
        dtype=config.dtype,
        seed=config.seed,
    )
    heads, heldout = evaluator.head_map, evaluator.heldout
    assert heldout is not None  # from_pretrained always cuts a held-out part
    dense = {
        **quality(evaluator, heldout, evaluator.model),
        **size(evaluator.model, evaluator.stored_dtype, len(heads)),
    }
    claim(folder, asdict(config))
    print(f"{config.model}: {len(heads)} attention heads in {len(heads.layers)} layers")
    print(f"run folder: {folder}", flush=True)
    search, chromosome = _search(config, evaluator, folder)
    print(f"ended after {search['generations']} generations, stopped by {search['stopped_by']}")
    result = {
        "dense": dense,
        "best": prune_and_measure(
            evaluator, heldout, _original(config, evaluator), chromosome, folder / "pruned"
        ),
        "search": search,
        "data": {"calibration": evaluator.task.describe(), "heldout": heldout.describe()},
        "dtype": str(evaluator.model.dtype).removeprefix("torch."),
        "versions": {name: version(name) for name in _VERSIONS} | {"python": python_version()},
    }
    write_json(folder / "result.json", result)
    print(f"\n{table(result, evaluator.task.name)}\n")
    print(f"result:       {folder / 'result.json'}")
    print(f"pruned model: {folder / 'pruned'}  (sos_deap.load reads it)")
    return folder


def _check(config: RunConfig) -> None:
    """Everything that can be checked without loading the model."""
    from sos_deap.search.drive import check_evolution
    from sos_deap.toolbox import check_operators

    if not 0 <= config.seed < 2**32:
        raise InputError(f"seed is {config.seed}: give a number from 0 to {2**32 - 1}")
    check_evolution(
        config.algorithm, config.population_size, config.generations, config.crossover_rate
    )
    check_operators(
        config.initial_sparsity, config.max_sparsity, config.mutation_rate, config.tournament_size
    )


def _search(config: RunConfig, evaluator: Evaluator, folder: Path) -> tuple[dict[str, Any], Any]:
    """Search; leave the logbook and the evaluations in the folder; return figures and winner."""
    import numpy

    from sos_deap.report import Progress, write_evaluations, write_logbook
    from sos_deap.search.drive import evolve
    from sos_deap.toolbox import statistics

    random.seed(config.seed)  # DEAP's operators and ours
    numpy.random.seed(config.seed)  # some of DEAP's selections
    toolbox = _toolbox(config, evaluator)
    progress = Progress(evaluator, config.generations)
    try:
        evolution = evolve(
            toolbox,
            config.algorithm,
            population=config.population_size,
            generations=config.generations,
            crossover_rate=config.crossover_rate,
            threshold=config.threshold,
            max_sparsity=config.max_sparsity,
            stats=statistics(),
            on_generation=progress,
        )
    finally:  # after Ctrl-C too: what was computed is kept
        seconds = progress.seconds
        progress.close()
        write_evaluations(folder / "evaluations.csv", evaluator)
    write_logbook(folder / "logbook.csv", evolution.logbook, progress.rows)
    if not evolution.halloffame:
        raise InputError(
            f"no sub-model had a finite {evaluator.task.name}: try another dtype or other data"
        )
    return {
        "algorithm": config.algorithm,
        "objective": config.objective,
        "seed": config.seed,
        "generations": len(evolution.logbook) - 1,
        **evaluator.accounting.asdict(),
        "seconds": seconds,
        "stopped_by": evolution.stopped_by,
    }, evolution.halloffame[0]


def _toolbox(config: RunConfig, evaluator: Evaluator) -> Any:
    from deap import base

    from sos_deap.search.algorithms import ALGORITHMS
    from sos_deap.toolbox import register

    literal = ALGORITHMS[config.algorithm].literal
    toolbox = base.Toolbox()
    register(
        toolbox,
        evaluator,
        initial_sparsity=config.initial_sparsity,
        max_sparsity=config.max_sparsity,
        mutation_rate=config.mutation_rate,
        tournament_size=config.tournament_size,
        crossover="paper" if literal else "sign-aware",
        repair=not literal,
    )
    return toolbox


def _original(config: RunConfig, evaluator: Evaluator) -> PreTrainedModel:
    """The model with its weights as stored: loaded once more if the search rounded them."""
    from sos_deap.models.pretrained import load_pretrained

    stored = str(evaluator.stored_dtype).removeprefix("torch.")
    if str(evaluator.model.dtype) in ("torch.float32", f"torch.{stored}"):
        return evaluator.model
    return load_pretrained(config.model, device="cpu", dtype=stored).model


def _folder(config: RunConfig) -> Path:
    if config.output_dir is not None:
        return Path(config.output_dir)
    model = re.sub(r"[^A-Za-z0-9.]+", "-", config.model).strip("-.")
    now = time.strftime("%Y%m%d-%H%M%S")
    return Path("runs", f"{now}-{model}-{config.algorithm}-{config.seed}")


def parse(arguments: list[str]) -> RunConfig:
    """Read the flags; a first argument that ends in .yaml, .yml or .json is a file of them.

    :raises InputError: for an unknown flag or key, or a value of the wrong type.
    """
    from transformers.hf_argparser import HfArgumentParser

    class Parser(HfArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise InputError(message)

    settings: Any = RunConfig
    parser = Parser(
        settings,
        prog="python -m sos_deap.run",
        usage="%(prog)s [settings.yaml|settings.json] [--FLAG VALUE ...]",
        description="Prune a model's attention heads with a genetic algorithm. Without flags it "
        "prunes the small model inside this package, on text that comes with Python.",
        allow_abbrev=False,
    )
    if arguments and arguments[0].endswith((".yaml", ".yml", ".json")):
        arguments = [*_from_file(Path(arguments[0])), *arguments[1:]]
    config, rest = parser.parse_args_into_dataclasses(arguments, return_remaining_strings=True)
    if rest:
        raise unknown("flag", rest[0].partition("=")[0], [f"--{name}" for name in _NAMES])
    chosen: RunConfig = config
    return chosen


def _from_file(path: Path) -> list[str]:
    """A configuration file as flags, so that both are checked by the same code."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))  # reads JSON too
    except FileNotFoundError as error:
        raise InputError(f"configuration file {path} does not exist") from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(
            f"configuration file {path} cannot be read: {first_line(error)}"
        ) from error
    if not isinstance(content, dict):
        raise InputError(f"configuration file {path} holds no settings: write lines of name: value")
    for key in content:
        if key not in _NAMES:
            raise unknown(f"setting in {path}", str(key), _NAMES)
    return [f"--{key}={value}" for key, value in content.items() if value is not None]


def main(arguments: list[str] | None = None) -> int:
    """The command line: run, and turn bad input into one line and exit status 2."""
    try:
        config = parse(sys.argv[1:] if arguments is None else arguments)
        _quiet()
        run(config)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, say; what was written before is whole
        print(f"error: {first_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def _quiet() -> None:
    """Silence the progress bars and advice of the libraries; errors are this program's to tell."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


_NAMES = [field.name for field in fields(RunConfig)]
_VERSIONS = ("sos_deap", "torch", "transformers", "datasets", "tokenizers", "deap", "numpy")


if __name__ == "__main__":
    sys.exit(main())
