"""The page of a run, and the comparison of runs."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from sos_deap.__main__ import main as front_door
from sos_deap.report.formats import measurement
from sos_deap.report.plots import by_generation, heads_figure, scatter
from sos_deap.run import main
from tests.test_run import read


@pytest.fixture(scope="module")
def finished(model_folder: Path, text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a complete run."""
    folder = tmp_path_factory.mktemp("page") / "a run"
    flags = {
        "model": model_folder,
        "dataset": text_file,
        "output_dir": folder,
        "population_size": 4,
        "generations": 3,
        "samples": 2,
        "seqlen": 32,
        "heldout_samples": 2,
        "max_sparsity": 0.34,
        "mutation_rate": 0.1,
        "device": "cpu",
        "dtype": "float32",
    }
    assert main([f"--{name}={value}" for name, value in flags.items()]) == 0
    return folder


class Words(HTMLParser):
    """The text of a page, and what it would load."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.text: list[str] = []
        self.loads: list[str] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.open.append(tag)
        self.loads += [v for k, v in attrs if k in ("src", "href", "xlink:href") and v[0] != "#"]

    def handle_data(self, data: str) -> None:
        self.text += [data.strip()] if data.strip() else []


def test_the_page_shows_all_and_loads_nothing(finished: Path) -> None:
    page = Words((finished / "report.html").read_text())
    result = read(finished)
    dense, best = result["dense"], result["best"]
    for figure in (
        f"{dense['parameters']:,}",
        f"{best['parameters']:,}",
        measurement(dense["heldout"]["perplexity"]),
        measurement(best["heldout"]["perplexity"]),
        "finished: 3 generations",
        f"{result['search']['tokens']:,}",
        result["versions"]["torch"],
        result["command"],
        f"split: {result['data']['held-out']['split']}".removeprefix("split: "),
    ):
        assert any(figure in text for text in page.text), figure
    written = json.loads((finished / "samples.json").read_text())
    assert len(written) == 2 and set(written[0]) == {"prompt", "text", "dense", "pruned"}
    assert all(text.strip() in page.text for one in written for text in one.values())
    assert all(address.startswith("data:image/png") for address in page.loads)
    assert page.open.count("svg") == 3 and "script" not in page.open
    plots = {path.name for path in (finished / "plots").iterdir()}
    assert plots == {
        f"{name}.{kind}"
        for name in ("heads", "sub_models", "generations")
        for kind in ("png", "svg")
    }


def test_the_command_reproduces_the_result(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sos_deap.run._measure", lambda models, seqlen: [])
    flags = read(finished)["command"].split()[3:]
    assert main([*flags, f"--output_dir={tmp_path / 'again'}"]) == 0
    assert read(tmp_path / "again")["best"] == read(finished)["best"]


def test_the_figures_show_what_was_found() -> None:
    figure: Any = heads_figure([1, 0, 1, 0, 0], [3, 2])
    [mesh] = figure.axes[0].collections
    shown = mesh.get_array()
    assert shown is not None
    assert shown.tolist() == [[1.0, 0.0, 1.0], [0.0, 0.0, None]]
    rows = [{"sparsity": "0.25", "kl": "0.5"}, {"sparsity": "0.5", "kl": "inf"}]
    points: Any = scatter(rows, rows[:1], "kl", {"kl": 0.0})
    [drawn] = points.axes[0].collections
    assert [list(point) for point in drawn.get_offsets()] == [[0.25, 0.5]]
    log = [
        {"gen": "0", "cache_hits": "0", "fitness_avg": "-5", "fitness_max": "-4"},
        {"gen": "1", "cache_hits": "2", "fitness_avg": "-1e29", "fitness_max": "-3"},
    ]
    log = [row | {"diversity_hamming": "0.5"} for row in log]
    progress: Any = by_generation(log)
    mean, best = progress.axes[0].lines
    assert list(mean.get_ydata()) == pytest.approx([-5.0, math.nan], nan_ok=True)
    assert list(best.get_ydata()) == [-4.0, -3.0]
    titles = [axis.get_title() for axis in progress.axes]
    assert [title.split()[0] for title in titles] == [
        "fitness:",
        "sparsity:",
        "diversity:",
        "cache",
    ]
    for axis, values in ((progress.axes[2], [0.5, 0.5]), (progress.axes[3], [0.0, 2.0])):
        [line] = axis.lines
        assert list(line.get_ydata()) == values


def test_runs_are_compared_without_torch(finished: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(finished, other)
    result = read(other)
    result["best"]["heldout"]["perplexity"] = 2 * result["dense"]["heldout"]["perplexity"]
    (other / "result.json").write_text(json.dumps(result))
    (other / "report.html").unlink()
    code = (
        "import sys; from sos_deap.__main__ import main; assert main(sys.argv[1:]) == 0;"
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", code, "report", str(finished), str(other)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert (other / "report.html").is_file()
    [line] = [line for line in told.splitlines() if line.startswith("other")]
    assert "sos-repaired" in line and "perplexity, held-out" in line and "+100.0%" in line


def test_old_folders_are_shown(finished: Path, tmp_path: Path, capsys: Any) -> None:
    """Names of settings that an earlier version wrote."""
    folder = tmp_path / "old"
    shutil.copytree(finished, folder)
    for file, names in (
        ("result.json", {"sparsity_of": "density"}),
        ("config.json", {"target_sparsity": "enough_sparsity", "finalists": "elite"}),
    ):
        text = (folder / file).read_text()
        for new, old in names.items():
            assert f'"{new}"' in text
            text = text.replace(f'"{new}"', f'"{old}"')
        (folder / file).write_text(text)
    assert front_door(["report", str(folder)]) == 0
    assert "old " in capsys.readouterr().out
    assert "density" in Words((folder / "report.html").read_text()).text


def test_report_does_not_import_torch(finished: Path) -> None:
    code = """
import sys
from sos_deap.__main__ import main

assert main(sys.argv[1:]) == 0
assert not {"torch", "transformers"} & set(sys.modules)
"""
    command = [sys.executable, "-c", code, "report", str(finished)]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[1])


def test_a_hostile_folder_changes_nothing_outside(
    finished: Path, tmp_path: Path, capsys: Any
) -> None:
    """Links to the user's files, names with escapes, and files that are folders."""
    folder, theirs = tmp_path / "run", tmp_path / "theirs"
    shutil.copytree(finished, folder)
    theirs.mkdir()
    names = ("report.html", "plots/heads.png", "plots/generations.svg")
    for name in names:
        (theirs / Path(name).name).write_text("precious")
        (folder / name).unlink()
        (folder / name).symlink_to(theirs / Path(name).name)
    (folder / "report.html.part").symlink_to(theirs / "report.html")
    result = read(folder)
    result["search"]["algorithm"] = "\x1b]0;title\x07\x1b[2Jmine"
    (folder / "result.json").write_text(json.dumps(result))
    assert front_door(["report", str(folder)]) == 0
    told = capsys.readouterr().out
    assert "mine" in told and told.replace("\n", "").isprintable()
    assert {path.read_text() for path in theirs.iterdir()} == {"precious"}
    assert not any((folder / name).is_symlink() for name in names)
    shutil.rmtree(folder / "plots")
    (folder / "plots").symlink_to(theirs)
    assert front_door(["report", str(folder)]) == 2
    assert "plots is a symbolic link" in capsys.readouterr().err
    assert len(list(theirs.iterdir())) == 3


def test_what_is_in_the_files_stays_text(finished: Path, tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    config = json.loads((folder / "config.json").read_text())
    config["model"] = "<script>alert(1)</script>"
    (folder / "config.json").write_text(json.dumps(config))
    assert front_door(["report", str(folder)]) == 0
    assert "script" not in Words((folder / "report.html").read_text()).open
    for name, content, message in (
        ("result.json", "{", "is damaged: "),
        ("result.json", "{}", "is damaged: "),
        ("logbook.csv", "a,b\n1,2\n", "is damaged: "),
        ("logbook.csv", "gen\n" + "1" * 200_000, "is damaged: field larger than field limit"),
        ("samples.json", "[[1]]", "is damaged: "),
        ("measured.json", "[[]]", "is damaged: "),
        ("measured.json", "", "is damaged: "),
        ("pareto.csv", None, "not the folder of a complete run: pareto.csv is missing"),
    ):
        path = folder / name
        before = path.read_text()
        path.unlink() if content is None else path.write_text(content)
        capsys.readouterr()
        assert front_door(["report", str(folder)]) == 2
        [error] = capsys.readouterr().err.splitlines()
        assert message in error
        path.write_text(before)
    assert front_door(["report", str(tmp_path)]) == 2
    (folder / "samples.json").unlink()
    (folder / "samples.json").mkdir()
    result = read(folder)
    result["search"]["genes_per_layer"][-1] = 10**12
    capsys.readouterr()
    assert front_door(["report", str(folder)]) == 2
    assert "samples.json cannot be read: Is a directory" in capsys.readouterr().err
    (folder / "samples.json").rmdir()
    (folder / "result.json").write_text(json.dumps(result))
    assert front_door(["report", str(folder)]) == 2
    assert "heads" in capsys.readouterr().err
