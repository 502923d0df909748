"""The interface of a task: a metric over examples, for several sub-models at once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from sos_deap.errors import unknown

if TYPE_CHECKING:
    from torch import Tensor


#: ROUGE variants (Lin, 2004), and the names of their reported values.
ROUGE_KINDS = ("rouge1", "rouge2", "rougeL")
ROUGE = tuple(f"{kind}_{what}" for kind in reversed(ROUGE_KINDS) for what in ("f1", "precision"))

#: Metrics from 0 to 1 of which higher is better; their changes are in points.
SHARES = frozenset(
    [
        *("accuracy", "accuracy_norm", "micro_f1", "macro_f1", "subset_accuracy", "jaccard"),
        *(*ROUGE, "bertscore_precision"),
    ]
)


#: Divergences from the dense model, which mean little by themselves.
DIVERGENCES = ("kl", "distillation")


def judged_by(metrics: Iterable[str]) -> str:
    """Return the metric to judge a model by: the first that is no divergence, or else the first.

    :param metrics: names of a task's metrics, the main one first.
    """
    names = list(metrics)
    return next((name for name in names if name not in DIVERGENCES), names[0])


class Task(Protocol):
    """A metric over a fixed list of examples.

    The evaluator calls :meth:`score` on ranges of examples, adds up the sums of each sub-model, and
    calls :meth:`metrics` with the sums over all examples. The sums must therefore be additive: a
    mean is the two sums of values and of counts.
    """

    @property
    def name(self) -> str:
        """Name of the metric that the fitness is computed from; a key of :meth:`metrics`."""

    @property
    def greater_is_better(self) -> bool:
        """Whether a higher value of the metric is better."""

    @property
    def seqlen(self) -> int:
        """Number of tokens in the longest example, those that the model generates included."""

    @property
    def tokens(self) -> int:
        """Number of tokens that a sub-model reads in all examples together, without padding."""

    @property
    def reference_tokens(self) -> int:
        """Number of tokens that the dense model read when the task was made; 0 for most tasks."""

    @property
    def one_pass(self) -> bool:
        """Whether :meth:`score` runs the model once per example, from embeddings to output.

        False for tasks that generate text or call the model any number of times. The evaluator then
        counts no operations, and shares no layers between sub-models.
        """

    @property
    def shares_passes(self) -> bool:
        """Whether :meth:`score` accepts ``sub_models`` above 1: several in one forward pass."""

    def __len__(self) -> int:
        """Return the number of examples."""

    def describe(self) -> dict[str, Any]:
        """Return the source, number and hash of the examples, for the report.

        The values are plain JSON. Evaluations are reused only between tasks whose descriptions are
        equal.
        """

    def score(self, model: Any, examples: slice, sub_models: int) -> Tensor:
        """Return the sums over some examples, (sub_models, k), float64.

        :param model: the model; each block of rows of a batch runs through another sub-model.
        :param examples: a range of examples, from 0 to ``len(self)``.
        :param sub_models: number of sub-models; the batch must be the examples, repeated as this
            number of consecutive blocks.
        :returns: for each sub-model k sums; NaN if the metric is undefined, such as for logits that
            are not finite.
        """

    def metrics(self, sums: list[float]) -> dict[str, float]:
        """Return the metrics by name.

        :param sums: the k sums of one sub-model over all examples.
        """


def checked_metric(metric: str | None, known: tuple[str, ...]) -> str:
    """Return the name of a metric after checking it.

    :param metric: name given by the user; ``None`` for the first of ``known``.
    :param known: names of the task's metrics.
    :raises InputError: for another name.
    """
    if metric is not None and metric not in known:
        raise unknown("metric of this task", metric, known)
    return metric or known[0]


class Tasks(NamedTuple):
    """A task on disjoint sets of examples.

    :param calibration: examples for the search.
    :param heldout: examples for the report.
    :param validation: examples that choose the winner among the finalists; ``None`` for no choice.
    :param probe: held-out examples of another data set; ``None`` for none.
    :param refit: calibration examples that the winner is refitted on; ``None`` for none.
    """

    calibration: Task
    heldout: Task
    validation: Task | None = None
    probe: Task | None = None
    refit: Task | None = None
