from __future__ import annotations

import csv
import json
import math
import random
import re
import sys
import threading
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from deap import tools

from sos_deap import Evaluator, InputError
from sos_deap.files.atomic import free_folder, make_folder, write_csv, write_json
from sos_deap.files.run_folder import claim
from sos_deap.report.console import Console, Progress
from sos_deap.report.formats import (
    ENDS,
    arrow,
    change,
    format_value,
    measurement,
    percent,
    search_end,
)
from sos_deap.report.headline import headline
from sos_deap.report.parts import Part, listed, parts_of, removal
from sos_deap.report.status import Status
from sos_deap.report.tables import (
    cells,
    front,
    front_hypervolume,
    front_line,
    table,
    winner,
)
from sos_deap.report.timings import measured_cells
from sos_deap.search.chromosome import Chromosome, ParetoFitness, random_genes
from sos_deap.search.limits import Limits
from tests.conftest import GENES


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_shows_the_state_of_the_search(
    evaluator: Evaluator, terminal: bool, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    monkeypatch.setenv("COLUMNS", "200")
    progress = Progress(evaluator, Limits(generations=12), dense=9.5)
    progress(0, [])
    best = Chromosome([1] * (GENES - 3) + [0] * 3)
    metric = evaluator.metric(best)
    evaluator.metric(best)
    for generation in range(1, 13):
        progress(generation, [best])
    progress.close()
    printed = capsys.readouterr().out
    assert "generation 0/12: no sub-model within the maximum sparsity yet, 0:0" in printed
    *_, last, counts = (line.rpartition("\x1b[K")[2] for line in printed.rstrip("\n").split("\n"))
    shown = f"perplexity {measurement(metric)} (dense 9.50), sparsity 0.250"
    assert re.fullmatch(rf"generation 12/12: {re.escape(shown)}, 0:0\d, ETA 0:00", last)
    assert re.fullmatch(r"1 evaluations, 1 cache hit, \d+ tokens, [\d,.]+ tokens/s", counts)
    # A terminal shows one line that changes; a file gets every tenth and the last.
    assert printed.count("\n") == (2 if terminal else 4)
    assert [row["evaluations"] for row in progress.rows] == [0] + [2] * 12


def test_progress_of_a_sub_model_scored_on_part_of_the_data(
    evaluator: Evaluator, capsys: Any
) -> None:
    progress = Progress(evaluator, Limits(evaluations=4))
    best = Chromosome([1] * (GENES - 3) + [0] * 3, examples=(0, 2))
    progress(0, [best])
    best.fitness.values = evaluator(best)
    progress(1, [best])
    progress.close()
    first, last, _ = capsys.readouterr().out.splitlines()
    assert "generation 0: not evaluated yet, sparsity 0.250" in first
    assert f": fitness {measurement(best.fitness.values[0])} on part of the data" in last
    assert re.match(r"generation 1: .*, 0:0\d, ETA 0:\d\d$", last)


def test_progress_stays_on_one_line_of_the_terminal(
    evaluator: Evaluator, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    Progress(evaluator, Limits(generations=12))(0, [])
    assert len(capsys.readouterr().out.removeprefix("\r\x1b[K")) == 39


def test_progress_without_a_generation_closes_quietly(evaluator: Evaluator, capsys: Any) -> None:
    Progress(evaluator, Limits(generations=12)).close()
    assert capsys.readouterr().out == ""


def test_the_time_left_includes_what_comes_after_the_search(evaluator: Evaluator) -> None:
    seconds = iter([10.0] * 9)
    after = 3 * evaluator.task.tokens
    progress = Progress(
        evaluator,
        Limits(evaluations=4),
        Console(words=False),
        lambda: next(seconds),
        after=after,
        seconds_after=7,
    )
    evaluator.metric([0] + [1] * (GENES - 1))
    progress(0, [])
    # One of four evaluations took 10 s, so 30 s are left for the others, 30 s for three more
    # passes over the text, and 7 s.
    assert progress.line().endswith("0:10, ETA 1:07")


@pytest.mark.parametrize("terminal", [True, False])
def test_a_long_step_is_shown_while_it_lasts(
    terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    monkeypatch.setattr("sos_deap.report.status._REFRESH", 0.001)
    now, called = [0.0], threading.Event()

    def clock() -> float:
        now[0] += 1.0
        if now[0] > 100:
            called.set()
        return now[0]

    status = Status(clock=clock)
    with status.step("timing both models"):
        assert called.wait(10)
    status.print("done")
    printed = capsys.readouterr().out
    assert re.search(r"timing both models, (0:\d\d|1:\d\d)", printed)
    assert ("\r\x1b[K" in printed) == terminal
    assert printed.endswith("\r\x1b[Kdone\n" if terminal else "\ndone\n")
    if not terminal:  # a line after each 25 s of silence, not every second
        assert printed.count("timing") <= 1 + now[0] / 25


def test_long_lines_are_broken_between_words_of_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    path = "/a/path/of-more-than/forty-columns/is-not/broken"
    Status().print(f"short\n{'word ' * 20}\n{path}")
    lines = capsys.readouterr().out.removeprefix("\r\x1b[K").splitlines()
    assert lines[0] == "short" and lines[-1] == path
    assert all(len(line) < 40 for line in lines[:-1]) and len(lines) > 4
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False)
    Status().print("word " * 20)
    assert len(capsys.readouterr().out) == 101


def test_a_quiet_step_prints_nothing(capsys: Any) -> None:
    status = Status(words=False)
    with status.step("timing both models"), status.during(lambda: "refreshed"):
        pass
    assert capsys.readouterr().out == ""


def test_only_one_of_two_runs_gets_a_folder(tmp_path: Path) -> None:
    first, second = free_folder(tmp_path / "run"), free_folder(tmp_path / "run")
    make_folder(first)
    claim(first, {"seed": 1})
    with pytest.raises(InputError, match="holds a run already"):
        claim(second, {"seed": 2})
    assert json.loads((first / "config.json").read_text()) == {"seed": 1}


def test_files_are_whole_or_not_there(tmp_path: Path) -> None:
    write_json(tmp_path / "c.json", ["[1, 2]"])
    assert json.loads((tmp_path / "c.json").read_text()) == ["[1, 2]"]
    write_json(tmp_path / "a.json", {"genes": [1, 0, 1], "nested": {"x": 0.5}})
    text = (tmp_path / "a.json").read_text()
    assert '"genes": [1,0,1]' in text  # on one line
    assert json.loads(text) == {"genes": [1, 0, 1], "nested": {"x": 0.5}}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert (tmp_path / "a.json").read_text() == text

    def rows() -> Any:
        yield [1]
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_csv(tmp_path / "b.csv", ["x"], rows())
    assert not (tmp_path / "b.csv").exists()
    write_csv(tmp_path / "b.csv", ["x", "y"], [[1, "a,b"]])
    with (tmp_path / "b.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["x", "y"], ["1", "a,b"]]


def test_the_table_by_hand() -> None:
    sizes = {"heads": 10, "parameters": 1000, "bytes": 4000}
    dense = sizes | {"calibration": {"kl": 0.0, "perplexity": 5.0}, "heldout": {"kl": None}}
    best = {"heads": 7, "parameters": 900, "bytes": 3600}
    best |= {"calibration": {"kl": 0.5, "perplexity": 5.5}, "heldout": {"kl": 0.25}}  # type: ignore[dict-item]
    result = {
        "dense": dense,
        "best": best,
        "data": {"calibration": {"split": "words", "sequences": 2000, "seqlen": 8}},
        "search": {"non_finite": 0},
        "dtype": "float32",
    }
    shown = table(result)
    assert "finite" not in shown
    result["search"] = {"non_finite": 3}
    assert "3 sub-models had no finite kl and got the worst fitness" in table(result)
    lines = [re.split(r"\s{2,}", line) for line in shown.splitlines()]
    assert lines[1] == ["attention heads", "10", "7", "-30.0 %"]
    assert lines[2] == ["parameters", "1,000", "900", "-10.0 %"]
    assert lines[4] == ["kl, calibration", "0", "0.500", "-"]
    assert lines[5] == ["perplexity, calibration", "5.00", "5.50", "+10.0 %"]
    assert lines[6] == ["kl, held-out", "-", "0.250", "-"]
    assert shown.splitlines()[7:] == [
        "calibration: words, sequences 2,000, seqlen 8",
        "dtype: float32",
    ]


def front_of(*values: tuple[float, float]) -> Any:
    front = tools.ParetoFront()
    for number, pair in enumerate(values):
        chromosome = Chromosome([number], ParetoFitness)
        chromosome.fitness.values = pair
        front.update([chromosome])
    return front


def test_the_winner_of_a_front_is_equation_1_s() -> None:
    assert winner(tools.HallOfFame(1)) is None
    front = front_of((-10.0, 0.0), (-11.0, 0.25), (-20.0, 0.4))
    assert winner(front).fitness.values == (-11.0, 0.25)  # 10, 8.25, 12 after the density
    # A divergence: 1, 0.75 * exp(0.2) = 0.92, 0.6 * exp(0.9) = 1.48.
    divergences = front_of((0.0, 0.0), (-0.2, 0.25), (-0.9, 0.4))
    assert winner(divergences, "kl").fitness.values == (-0.2, 0.25)


def test_the_front_is_not_dominated(evaluator: Evaluator) -> None:
    random.seed(5)
    genes = [Chromosome(random_genes(12, n / 12)) for n in range(7) for _ in range(6)]
    evaluator.many(genes)
    everyone = [(tuple(g), m, evaluator.sparsity(g)) for g, m in evaluator.history()]
    unbeaten = {
        g
        for g, m, s in everyone
        if not any((m2 < m and s2 >= s) or (m2 <= m and s2 > s) for _, m2, s2 in everyone)
    }
    found = front(evaluator)
    assert {tuple(g) for g, _ in found} == unbeaten
    assert [m for _, m in found] == sorted(m for _, m in found)


@pytest.mark.parametrize(
    ("name", "grows", "values", "reference", "area"),
    [
        # Up to twice the dense 10: 0.5 wide at cost 12, the 0.25 before it at 10; 25 is beyond.
        ("perplexity", False, [(-10, 0.25), (-12, 0.5), (-25, 0.6)], 20.0, 0.25 * 10 + 0.25 * 8),
        ("kl", False, [(-0.1, 0.2)], math.log(2), 0.2 * (math.log(2) - 0.1)),
        ("accuracy", True, [(0.9, 0.2), (0.8, 0.5)], 0.0, 0.2 * 0.9 + 0.3 * 0.8),
    ],
)
def test_hypervolume_by_hand(
    name: str, grows: bool, values: Any, reference: float, area: float
) -> None:
    task: Any = SimpleNamespace(name=name, greater_is_better=grows)
    found = front_hypervolume(task, front_of(*values), dense=10.0)
    assert found["value"] == pytest.approx(area)
    assert found["reference"] == {name: pytest.approx(reference), "sparsity": 0.0}
    shown = f"hypervolume of the Pareto front: {measurement(area)} (reference point: {name} "
    assert front_line(found).startswith(shown)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (9.28614, "9.29"),
        (9.999, "10.0"),
        (999.6, "1,000"),
        (1234.5, "1,230"),
        (-22.41, "-22.4"),
        (0.000123456, "0.000123"),
        (1.234e-9, "1.23e-09"),
        (6.5e30, "6.50e+30"),
        (0.0, "0"),
        (math.inf, "inf"),
    ],
)
def test_measurements_have_three_digits(value: float, shown: str) -> None:
    assert measurement(value) == shown


def test_counts_are_whole() -> None:
    assert [format_value(x) for x in (1_234_567, 1234.567, "sos")] == ["1,234,567", "1,230", "sos"]
    assert format_value(True) == "True"


@pytest.mark.parametrize(
    ("before", "after", "shown"),
    [
        (144, 100, "-30.6 %"),
        (100.0, 632.1, "+532 %"),
        (1000, 1012, "+1.20 %"),
        (1000, 1099.96, "+10.0 %"),
        (-2.0, -3.0, "+50.0 %"),
        (10**6, 10**6 + 1, "+0.00 %"),
        (7, 7, "0 %"),
        (7, 0, "-100 %"),
    ],
)
def test_changes_have_three_digits_and_at_most_two_decimals(
    before: float, after: float, shown: str
) -> None:
    assert change(before, after) == shown
    assert percent(abs(after / before - 1)) == shown.lstrip("+-")


def test_an_arrow_for_every_terminal() -> None:
    shown_in = [("utf-8", "→"), ("ascii", "->"), ("latin-1", "->"), ("x-none", "->"), (None, "->")]
    for encoding, shown in shown_in:
        assert arrow(SimpleNamespace(encoding=encoding)) == shown  # type: ignore[arg-type]


def test_measured_times_have_three_digits_and_bytes_per_token_are_whole() -> None:
    figures = dict.fromkeys(("decode_seconds", "decode_tokens_per_second"))
    figures |= {"prefill_seconds": 0.00928614, "kv_bytes_per_token": 13824.0}
    figures |= {"peak_bytes": 12_092_400, "weight_bytes": 11_147_328}
    row = {"batch_size": 1, "length": 8, "rounds": 3, "models": {"model": figures}}
    shown = {label: value for label, value, *_ in measured_cells(row)["rows"]}
    assert list(shown.values()) == ["9.29", "12.1", "11.1", "13,824"]


def test_savings_within_noise_or_above_the_bound_are_commented() -> None:
    def model(prefill: float, decode: float) -> dict[str, Any]:
        return {
            "prefill_seconds": prefill,
            "prefill_quartiles": [0.99 * prefill, 1.01 * prefill],
            "decode_seconds": decode,
            "decode_quartiles": [0.9 * decode, 1.1 * decode],
            "decode_tokens_per_second": 1 / decode,
            **{"peak_bytes": 2e6, "weight_bytes": 10**6, "kv_bytes_per_token": 96.0},
        }

    models = {"dense": model(0.01, 0.002), "pruned": model(0.008, 0.0019)}
    gains = {"pruned": {"prefill_bound": 0.029, "decode_bound": 0.1}}
    row = {"batch_size": 1, "length": 8, "rounds": 12, "models": models, "gains": gains}
    shown = measured_cells(row)
    assert shown["rows"][:4] == [
        ["prefill, ms", "10.0", "8.00", "20.0 %", "2.90 %"],
        ["  quartiles", "9.90 - 10.1", "7.92 - 8.08", "", ""],
        ["decoding, ms per token", "2.00", "1.90", "noise", "10.0 %"],
        ["  quartiles", "1.80 - 2.20", "1.71 - 2.09", "", ""],
    ]
    above, noise = shown["notes"]
    assert above.startswith("prefill saves more than the bound: ")
    assert noise == "noise: the quartiles of the decoding of both models overlap"
    for figures in models.values():
        figures |= {"kv_bytes_per_token": 0, "decode_seconds": None}
    labels = [label for label, *_ in measured_cells(row)["rows"]]
    assert labels[0] == "forward pass, ms" and "peak memory of a forward pass, MB" in labels
    assert not any("cache" in label or "decoding, ms" in label for label in labels)


def test_shares_change_by_points() -> None:
    result = run_result(change=quality("points", -0.9174, None, None))
    result["dense"] |= {"bytes": 11_147_328, "heldout": {"accuracy": 0.8016}}
    result["best"] |= {"bytes": 8_147_520, "heldout": {"accuracy": 0.7924}}
    assert cells(result)[1:] == [
        ("weights, MB", "11.1", "8.15", "-26.9 %"),
        ("accuracy, held-out", "80.2 %", "79.2 %", "-0.92 points"),
    ]


def test_every_end_of_a_search_is_a_sentence() -> None:
    limits = {field.name for field in fields(Limits)}
    assert set(ENDS) == limits | {"finished", "max_sparsity"}
    counts = {"generations": 11, "evaluations": 1003, "tokens": 2000}
    for name in ENDS:
        assert re.match(r"(finished|stopped): .*11", search_end({"stopped_by": name, **counts}))
    stopped = search_end({"stopped_by": "evaluations", **counts})
    assert stopped == "stopped: the limit on evaluations was reached (1,003, generation 11)"
    assert search_end({"stopped_by": "mine"}) == "stopped: mine"


# One sentence on a run


def run_result(**changes: Any) -> dict[str, Any]:
    """A result of 3 of 10 heads removed."""
    return {
        "dense": {"parameters": 1000, "heldout": {"perplexity": 23.4081}},
        "best": {
            "parameters": 730,
            "heldout": {"perplexity": 24.6279, "loss": 3.2},
            "chromosome": [1, 1, 1, 0, 1, 1, 1, 0, 0, 1],
        },
        "search": {"genes_per_layer": [4, 6]},
        "data": {"calibration": {"split": "a"}, "held-out": {"split": "b"}},
    } | changes


def timed(dense: float | None, pruned: float | None) -> list[dict[str, Any]]:
    seconds = {"dense": dense, "pruned": pruned}
    models = {name: {"prefill_seconds": value} for name, value in seconds.items()}
    return [{"models": models}, {"models": {}}]


UNSEEN = "on text that the search has not seen"
LOSS = "perplexity 23.4 → 24.6 " + UNSEEN


def test_the_headline_has_gain_and_loss() -> None:
    result = run_result()
    gain = "27.0 % fewer parameters"
    assert headline(result, timed(1.29, 1.0)) == f"{gain}, prefill 1.29 times as fast, {LOSS}"
    slower = headline(result, timed(0.97, 1.0))
    assert slower == f"{gain}, prefill slower, 0.970 times as fast, {LOSS}"
    assert headline(result) == headline(result, timed(None, None)) == f"{gain}, {LOSS}"
    assert headline(result, arrow="->") == f"{gain}, {LOSS}".replace("→", "->")


def test_the_headline_of_timings_within_noise() -> None:
    [row, _] = timed(1.2, 1.0)
    dense, pruned = row["models"].values()
    dense["prefill_quartiles"], pruned["prefill_quartiles"] = [1.05, 1.4], [0.9, 1.1]
    shown = headline(run_result(), [row])
    assert shown == f"27.0 % fewer parameters, prefill as fast within timing noise, {LOSS}"
    dense["prefill_quartiles"] = [1.11, 1.4]
    assert "prefill 1.20 times as fast" in headline(run_result(), [row])
    for figures in (dense, pruned):
        figures["kv_bytes_per_token"] = 0  # of an encoder
    assert "forward pass 1.20 times as fast" in headline(run_result(), [row])


def quality(kind: str, value: float, low: float | None, high: float | None) -> dict[str, Any]:
    """A change of ``accuracy`` or ``perplexity``, as in ``result.json``."""
    change = {"kind": kind, "value": value, "low": low, "high": high}
    return {"heldout": {"accuracy" if kind == "points" else "perplexity": change}}


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        (quality("percent", 5.211, 4.5, 5.9), "(+5.21 %, 95 % interval +4.50 to +5.90 %)"),
        (quality("percent", -2.1, -3.0, -1.2), "(-2.10 %, 95 % interval -3.00 to -1.20 %)"),
        (
            quality("percent", 0.3, -0.2, 0.8),
            "(+0.30 %, 95 % interval -0.20 to +0.80 %: within noise)",
        ),
        (quality("percent", 5.211, None, None), "(+5.21 %)"),
    ],
)
def test_the_headline_has_the_change_and_its_interval(change: Any, shown: str) -> None:
    sentence = f"27.0 % fewer parameters, perplexity 23.4 → 24.6 {shown} {UNSEEN}"
    assert headline(run_result(change=change)) == sentence


def test_the_headline_of_a_classifier_counts_answers() -> None:
    data = {"calibration": {"split": "a"}, "held-out": {"split": "b", "examples": 872}}
    result = run_result(data=data, change=quality("points", -0.9174, -2.2, 0.35))
    result["dense"]["heldout"] = {"accuracy": 699 / 872}
    result["best"]["heldout"] = {"accuracy": 691 / 872}
    assert headline(result) == (
        "27.0 % fewer parameters, accuracy 80.2 → 79.2 % (-0.92 points, 8 of 872 answers, 95 % "
        f"interval -2.20 to +0.35 points: within noise) {UNSEEN}"
    )
    result["best"]["heldout"] = result["dense"]["heldout"]
    assert headline(result) == f"27.0 % fewer parameters, accuracy 80.2 % {UNSEEN}"


def test_the_headline_has_the_promised_speed() -> None:
    gain, search = "27.0 % fewer parameters", {"genes_per_layer": [4, 6]}
    promised = run_result(search=search | {"promised_speedup": 1.28})
    both = run_result(search=search | {"promised_speedup": 1.28, "measured_speedup": 1.2611})
    speed = "prefill 1.29 times as fast"
    assert headline(promised) == f"{gain}, speed-up promised 1.28, {LOSS}"
    for result, known in ((promised, "promised 1.28"), (both, "promised 1.28, measured 1.26")):
        shown = headline(result, timed(1.29, 1.0))
        assert shown == f"{gain}, {speed} (speed-up {known}), {LOSS}"


def test_the_headline_of_nothing_removed() -> None:
    result = run_result()
    result["best"] = {"parameters": 1000, "heldout": {"perplexity": 23.4081}, "chromosome": [1] * 9}
    nothing = "nothing was removed, since no smaller sub-model had a better fitness"
    assert headline(result, timed(1.01, 1.0)) == f"{nothing}, perplexity 23.4 {UNSEEN}"
    bounded = headline({**result, "bound": {}})
    assert bounded.startswith("nothing was removed, since every smaller sub-model exceeded the")
    result["search"] |= {"promised_speedup": 1.1, "measured_speedup": 1.0}
    assert ", speed-up promised 1.10, measured 1.00, perplexity" in headline(result)


def test_the_headline_of_zeroed_heads() -> None:
    result = run_result()
    result["best"]["parameters"] = 1000
    shown = headline(result, timed(1.0, 1.0))
    assert shown.startswith(
        "3 of 10 attention heads set to zero, as many parameters as before, prefill 1.00 times as"
    )


@pytest.mark.parametrize(
    ("dense", "best", "shown"),
    [
        ({"accuracy": 0.9123}, {"accuracy": 0.8874}, "accuracy 0.912 → 0.887"),
        ({"accuracy": 0.5}, {"accuracy": 0.5}, "accuracy 0.500"),
        ({"rouge1": 0.2, "rouge2": 0.1}, {"rouge1": 0.25, "rouge2": 0.1}, "rouge1 0.200 → 0.250"),
        (
            {"kl": 0.0, "perplexity": 23.4, "distillation": 1.0},
            {"kl": 0.0512, "perplexity": 24.6, "distillation": 2.0},
            "perplexity 23.4 → 24.6",
        ),
        ({"kl": 0.0}, {"kl": None}, "kl 0 → not finite"),
    ],
)
def test_the_headline_names_the_metric(dense: Any, best: Any, shown: str) -> None:
    result = run_result()
    result["dense"]["heldout"], result["best"]["heldout"] = dense, best
    assert headline(result) == f"27.0 % fewer parameters, {shown} {UNSEEN}"


def test_the_headline_of_a_metric_of_the_users() -> None:
    """Its function may read anything, and without rows of data it has one part only."""
    parts = {name: {"split": name, "code_hash": "x"} for name in ("calibration", "held-out")}
    assert headline(run_result(data=parts)).endswith("on data that the search has not seen")
    parts["held-out"] = parts["calibration"]
    assert headline(run_result(data=parts)).endswith("on the data of the search")


# Parts of a chromosome


def test_parts_cut_a_chromosome() -> None:
    kinds = {"heads": 2, "channels": 3}
    rows = [{"layer": i, "kind": k, "size": n} for i in (0, 1) for k, n in kinds.items()]
    parts = parts_of({"parts": rows}, [1, 0, 1, 1, 0, 0, 0, 1, 1, 1])
    first = [Part(0, "heads", (1, 0)), Part(0, "channels", (1, 1, 0))]
    assert parts == [*first, Part(1, "heads", (0, 0)), Part(1, "channels", (1, 1, 1))]
    assert [part.removed for part in parts] == [[1], [2], [0, 1], []]
    assert listed(parts) == "4 attention heads and 6 blocks of feed-forward channels in 2 layers"
    shown = "3 of 4 attention heads and 1 of 6 blocks of feed-forward channels"
    assert removal(parts) == shown
    layers = parts_of(
        {"parts": [{"layer": i, "kind": "layers", "size": 1} for i in (0, 1)]}, [1, 0]
    )
    assert (listed(layers), removal(layers)) == ("2 layers", "1 of 2 layers")


def test_parts_of_an_earlier_version_are_heads() -> None:
    parts = parts_of({"genes_per_layer": [1, 2]}, [1, 0, 1])
    assert parts == [Part(0, "heads", (1,)), Part(1, "heads", (0, 1))]
    search: dict[str, Any]
    for search in ({"genes_per_layer": [1, 3]}, {"genes_per_layer": [-1, 4]}, {"parts": []}):
        with pytest.raises(ValueError, match="3 genes for parts of"):
            parts_of(search, [1, 0, 1])
