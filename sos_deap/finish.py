"""What a run does after its search: prune, measure, save and report."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sos_deap.artifacts import save_best, search_figures, speedups, write_samples
from sos_deap.cards import write_run_card
from sos_deap.evaluation.evaluator import Evaluator
from sos_deap.files.atomic import write_json
from sos_deap.models.measure import measure
from sos_deap.quality import Quality, changes_of
from sos_deap.quality_bound import SHOWN, QualityBound
from sos_deap.refitting import Refit
from sos_deap.rehearsal import timed_lengths
from sos_deap.report.console import Console
from sos_deap.report.formats import arrow
from sos_deap.report.headline import headline
from sos_deap.report.live import add_genes
from sos_deap.report.tables import (
    bound_lines,
    front,
    search_lines,
    table,
    winner,
    write_front,
    write_genes,
)
from sos_deap.report.timings import measured_table
from sos_deap.search.drive import Evolution

#: Seconds of other work after a search, about: timings, the figures and the page.
SECONDS_AFTER = 15.0

#: Bounds of the seconds that both models are timed; within them, a fifth of the search's time.
TIMED = (3.0, 30.0)


def tokens_after(evaluator: Evaluator, bounded: bool) -> int:
    """Return the number of tokens that are read after a search, about.

    :param evaluator: the evaluator of the search, with validation examples if ``bounded``.
    :param bounded: whether the loss on them chooses the winner.
    """
    parts = [evaluator.task, evaluator.heldout, evaluator.probe]
    total = sum(task.tokens for task in parts if task is not None)
    refit = evaluator.refit_task
    # A refit reads its text layer by layer with both models, and the others once more.
    found = total if refit is None else 2 * total + 4 * refit.tokens
    if bounded:
        assert evaluator.validation is not None
        assert evaluator.heldout is not None
        found += SHOWN * (evaluator.validation.task.tokens + evaluator.heldout.tokens)
        # Bisection takes about log2(SHOWN) refits.
        found += 0 if refit is None else 4 * (4 * refit.tokens + evaluator.validation.task.tokens)
    return found


@dataclass
class Finish:
    """The steps after a search.

    :param evaluator: the evaluator of the search.
    :param name: name of the dense model.
    :param layout: a name in :data:`sos_deap.models.prune.LAYOUTS`.
    :param quantize: the quantisation of the pruned model, a name in
        :data:`sos_deap.models.quantised.QUANTISATIONS`.
    :param folder: the run folder.
    :param console: the output.
    :param dense: the dense model's quality.
    :param refit: refits the winner; ``None`` for no refit.
    :param max_loss: the largest loss of the winner on the validation examples; ``None``: the winner
        is that of the search.
    :param tensorboard: whether the run writes event files.
    """

    evaluator: Evaluator
    name: str
    layout: str
    quantize: str
    folder: Path
    console: Console
    dense: Quality
    refit: Refit | None
    max_loss: float | None
    tensorboard: bool

    def __call__(self, result: dict[str, Any], evolution: Evolution, seconds: float) -> None:
        """Prune with the winner, measure and report.

        :param result: the content of ``result.json`` before the search.
        :param evolution: the search.
        :param seconds: the time that it took.
        """
        folder, evaluator, console = self.folder, self.evaluator, self.console
        figures = search_figures(evaluator, evolution, result)
        searched = {**result["search"], **figures, "seconds": seconds}
        console.print(search_lines(searched))
        chromosome, bound = self._chosen(evolution)
        for line in bound_lines(bound):
            console.print(line)
        write_genes(folder / "genes.csv", evaluator, chromosome, evolution.losses)
        best, pruned, changed = self._save(chromosome)
        refitted = {} if self.refit is None else {"refit": self.refit.result}
        with console.step("timing both models"):
            searched |= speedups(evaluator, best["sparsity"], pruned)
            result = result | {
                "best": best,
                "change": changed,
                "search": searched,
                **bound,
                **refitted,
            }
            write_json(folder / "result.json", result)
            models = {"dense": evaluator.model, "pruned": pruned}
            timings = measured(models, evaluator.task.seqlen, seconds / 5)
            write_json(folder / "measured.json", timings)
        console.print(f"\n{headline(result, timings, arrow(sys.stdout))}\n")
        console.print(f"{table(result)}\n\n{measured_table(timings)}\n")
        with console.step("writing samples and the report"):
            card = folder / "pruned", evaluator, self.layout, self.name, self.quantize
            write_run_card(*card, result, timings)
            write_samples(folder / "samples.json", evaluator, models)
            console.event("result", **result, measured=timings)
            page = self._page(searched["generations"])
        console.print(f"report:       {page}")
        console.print(f"result:       {folder / 'result.json'}")
        console.print(f"pruned model: {folder / 'pruned'}  (its README.md shows how to load it)")

    def _chosen(self, evolution: Evolution) -> tuple[list[int], dict[str, Any]]:
        """Return the chromosome to prune to, and the part ``bound`` of ``result.json``, if any."""
        evaluator = self.evaluator
        if self.max_loss is None:
            write_front(self.folder / "pareto.csv", evaluator)
            return list(winner(evolution.halloffame, evaluator.task.name)), {}
        bound = QualityBound(evaluator, self.max_loss, self.refit)
        with self.console.step("choosing by the loss on validation examples"):
            chromosome = bound.choose([genes for genes, _ in front(evaluator)])
        write_front(self.folder / "pareto.csv", evaluator, bound.columns)
        return chromosome, {"bound": bound.result}

    def _save(self, chromosome: list[int]) -> tuple[dict[str, Any], Any, dict[str, Any]]:
        """Save the winner; returns ``best`` of ``result.json``, the model and its changes."""
        evaluator = self.evaluator
        with self.console.step("pruning, and measuring the quality on held-out text"):
            best, pruned, reached = save_best(
                self.folder,
                evaluator,
                chromosome,
                self.layout,
                self.name,
                self.quantize,
                self.refit,
            )
            return best, pruned, changes_of(evaluator, self.dense, reached)

    def _page(self, generations: int) -> Path:
        """Write the page, and return its path."""
        from sos_deap.report.page import write_page  # imports matplotlib, which is slow

        page = write_page(self.folder)
        if self.tensorboard:
            add_genes(self.folder, generations)
        return page


def measured(models: dict[str, Any], seqlen: int, seconds: float) -> Any:
    """Time the models on at most as many positions as were evaluated.

    :param models: the dense and the pruned model by name.
    :param seqlen: tokens in an example of the task.
    :param seconds: most time to take, within the bounds :data:`TIMED`.
    """
    length, new_tokens = timed_lengths(models["dense"], seqlen)
    least, most = TIMED
    seconds = min(max(seconds, least), most)
    return measure(models, lengths=[length], new_tokens=new_tokens, seconds=seconds)
