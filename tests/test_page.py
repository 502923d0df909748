"""The page of a run, and the comparison of runs."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from matplotlib.colors import to_rgba

from sos_deap.__main__ import main as package_main
from sos_deap.report.figures import COLOURS
from sos_deap.report.formats import measurement
from sos_deap.report.genes_figure import genes_figure
from sos_deap.report.headline import headline
from sos_deap.report.parts import Part
from sos_deap.report.plots import by_generation, scatter
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
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sos_deap.finish.TIMED", (0.0, 0.0))  # the fewest rounds
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
        f"split: {result['data']['held-out']['split']}".removeprefix("split: "),
    ):
        assert any(figure in text for text in page.text), figure
    assert result["command"] in " ".join(page.text)
    written = json.loads((finished / "samples.json").read_text())
    assert len(written) == 2 and set(written[0]) == {"prompt", "text", "dense", "pruned"}
    assert all(text.strip() in page.text for one in written for text in one.values())
    assert all(address.startswith("data:image/png") for address in page.loads)
    assert page.open.count("svg") == 3 and "script" not in page.open
    assert page.open.index("pre") > max(i for i, tag in enumerate(page.open) if tag == "svg")
    plots = {path.name for path in (finished / "plots").iterdir()}
    assert plots == {
        f"{name}.{kind}"
        for name in ("genes", "sub_models", "generations")
        for kind in ("png", "svg")
    }


def test_one_sentence_leads_the_page_and_the_card(finished: Path) -> None:
    measured = json.loads((finished / "measured.json").read_text())
    sentence = headline(read(finished), measured)
    assert "prefill" in sentence and " → " in sentence
    page = (finished / "report.html").read_text()
    assert re.search(rf'<h1>.*</h1>\n<p class="headline">{re.escape(sentence)}</p>', page)
    card = (finished / "pruned" / "README.md").read_text()
    assert re.search(rf"^# .*\n\n{re.escape(sentence)}\.\n", card, re.MULTILINE)


def test_the_command_reproduces_the_result(finished: Path, tmp_path: Path, capsys: Any) -> None:
    flags = read(finished)["command"].split()[3:]
    assert main([*flags, f"--output_dir={tmp_path / 'again'}"]) == 0
    assert read(tmp_path / "again")["best"] == read(finished)["best"]
    printed = capsys.readouterr().out.splitlines()
    sentence = headline(read(finished))  # not timed again
    assert printed.index(sentence) == printed.index("finished: 3 generations") + 2
    assert printed.index(sentence) < min(
        i for i, line in enumerate(printed) if line.startswith("  ")
    )


def test_the_figures_show_what_was_found() -> None:
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


def boxes(axis: Any) -> list[tuple[int, float, float, bool]]:
    """Row, left and right end of each box of a map, and whether it is filled."""
    [drawn] = axis.collections
    fills = drawn.get_facecolors()
    corners = [path.get_extents() for path in drawn.get_paths()]
    return [
        (int(box.y0), round(box.x0, 4), round(box.x1, 4), bool(fill[3]))
        for box, fill in zip(corners, fills, strict=True)
    ]


def test_the_map_shows_heads() -> None:
    figure: Any = genes_figure([Part(0, "heads", (1, 0, 1)), Part(3, "heads", (0, 0))])
    [axis] = figure.axes
    first = [(0, 0, 1, True), (0, 1, 2, False), (0, 2, 3, True)]
    assert boxes(axis) == [*first, (1, 0, 1, False), (1, 1, 2, False)]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["0", "3"]
    assert axis.get_xlabel() == "head"


def test_the_map_shows_channels_next_to_heads() -> None:
    """An encoder-decoder: one attention in layer 0, and two in layer 1."""
    parts = [
        Part(0, "heads", (1, 0)),
        Part(0, "channels", (1, 0, 1, 0)),
        Part(1, "heads", (1, 1)),
        Part(1, "heads", (0, 1)),
        Part(1, "channels", (0, 0, 0, 0)),
    ]
    figure: Any = genes_figure(parts)
    own, cross, channels = figure.axes
    labels = [axis.get_xlabel() for axis in figure.axes]
    assert labels == ["head", "head, attention 2", "feed-forward channels kept"]
    assert [row for row, *_ in boxes(own)] == [0, 0, 1, 1]
    assert boxes(cross) == [(1, 0, 1, False), (1, 1, 2, True)]
    kept = [(0, 0, 0.25, True), (0, 0.25, 0.5, True)]
    assert boxes(channels) == [*kept, (0, 0.5, 1, False), (1, 0, 1, False)]
    first, second, *_ = channels.collections[0].get_facecolors()
    assert tuple(first) == to_rgba(COLOURS[0]) and sum(second) > sum(first)  # the third block
    assert [text.get_text() for text in channels.texts] == ["50.0 %", "0 %"]


@pytest.mark.parametrize(
    ("kinds", "names"),
    [
        (["attention", "ffn"], ["attention", "feed-forward"]),
        (["attention", "ffn", "attention"], ["attention", "attention 2", "feed-forward"]),
        (["layers"], ["layer"]),
        (["mine"], ["mine"]),
    ],
)
def test_the_map_shows_whole_sub_layers(kinds: list[str], names: list[str]) -> None:
    figure: Any = genes_figure([Part(layer, kind, (layer,)) for layer in (0, 1) for kind in kinds])
    figure.draw_without_rendering()
    [axis] = figure.axes
    assert [label.get_text() for label in axis.get_xticklabels()] == names
    assert sorted(boxes(axis)) == sorted(
        (layer, place, place + 1, bool(layer)) for layer in (0, 1) for place in range(len(kinds))
    )


@pytest.mark.parametrize("heads", [1, 64])
def test_the_map_of_a_large_model_fits_a_page(heads: int) -> None:
    kinds = {"heads": heads, "channels": 16}
    figure = genes_figure(
        [Part(layer, kind, (1,) * n) for layer in range(80) for kind, n in kinds.items()]
    )
    figure.draw_without_rendering()
    assert figure.get_figwidth() <= 11 and figure.get_figheight() <= 9
    widths = [axis.get_position().width * figure.get_figwidth() for axis in figure.axes]
    assert widths[0] >= max(0.9, 0.09 * heads) and widths[1] > 2


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
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert (other / "report.html").is_file()
    sentence, line = [line for line in printed.splitlines() if line.startswith("other")]
    assert "sos-repaired" in line and "perplexity, held-out" in line and "+100 %" in line
    assert f"{12 - result['best']['heads']} of 12 heads" in line
    assert sentence.startswith("other: ") and sentence.endswith("the search has not seen")


@pytest.mark.usefixtures("drawn_figures")
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
    result = read(folder)
    parts, search = result["search"].pop("parts"), result["search"]
    del search["genes"]
    search["genes_per_layer"] = [part["size"] for part in parts]
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "measured.json").unlink()
    assert package_main(["report", str(folder)]) == 0
    assert "old " in capsys.readouterr().out
    assert "density" in Words((folder / "report.html").read_text()).text
    for figure in ("genes.png", "genes.svg"):
        drawn = [(place / "plots" / figure).read_bytes() for place in (folder, finished)]
        assert drawn[0] == drawn[1]


@pytest.mark.usefixtures("drawn_figures")
def test_a_page_of_heads_and_channels(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    result = read(folder)
    kinds, best = {"heads": 4, "channels": 8}, result["best"]
    result["search"] |= {
        "genes": "heads+channels",
        "parts": [
            {"layer": layer, "kind": kind, "size": size}
            for layer in range(3)
            for kind, size in kinds.items()
        ],
    }
    best["chromosome"] = [1, 0, 1, 1, *[1] * 7, 0] * 3
    result["dense"]["channels"], best["channels"] = 144, 126
    (folder / "result.json").write_text(json.dumps(result))
    assert package_main(["report", str(folder)]) == 0
    page = Words((folder / "report.html").read_text())
    place = page.text.index("feed-forward channels")
    assert page.text[place : place + 4] == ["feed-forward channels", "144", "126", "-12.5 %"]
    removed = "3 of 12 attention heads and 3 of 24 blocks of feed-forward channels removed"
    assert any(text.startswith(removed) for text in page.text)


def test_a_hostile_folder_changes_nothing_outside(
    finished: Path, tmp_path: Path, capsys: Any
) -> None:
    """Links to the user's files, names with escapes, and files that are folders."""
    folder, foreign = tmp_path / "run", tmp_path / "foreign"
    shutil.copytree(finished, folder)
    foreign.mkdir()
    names = ("report.html", "plots/genes.png", "plots/generations.svg")
    for name in names:
        (foreign / Path(name).name).write_text("precious")
        (folder / name).unlink()
        (folder / name).symlink_to(foreign / Path(name).name)
    (folder / "report.html.part").symlink_to(foreign / "report.html")
    result = read(folder)
    result["search"]["algorithm"] = "\x1b]0;title\x07\x1b[2Jmine"
    (folder / "result.json").write_text(json.dumps(result))
    assert package_main(["report", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "mine" in printed and printed.replace("\n", "").isprintable()
    assert {path.read_text() for path in foreign.iterdir()} == {"precious"}
    assert not any((folder / name).is_symlink() for name in names)
    shutil.rmtree(folder / "plots")
    (folder / "plots").symlink_to(foreign)
    assert package_main(["report", str(folder)]) == 2
    assert "plots is a symbolic link" in capsys.readouterr().err
    assert len(list(foreign.iterdir())) == 3


def test_what_is_in_the_files_stays_text(finished: Path, tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    config = json.loads((folder / "config.json").read_text())
    config["model"] = "<script>alert(1)</script>"
    (folder / "config.json").write_text(json.dumps(config))
    assert package_main(["report", str(folder)]) == 0
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
        assert package_main(["report", str(folder)]) == 2
        [error] = capsys.readouterr().err.splitlines()
        assert message in error
        path.write_text(before)
    assert package_main(["report", str(tmp_path)]) == 2
    (folder / "samples.json").unlink()
    (folder / "samples.json").mkdir()
    result = read(folder)
    result["search"]["parts"][-1]["size"] = 10**12
    capsys.readouterr()
    assert package_main(["report", str(folder)]) == 2
    assert "samples.json cannot be read: Is a directory" in capsys.readouterr().err
    (folder / "samples.json").rmdir()
    (folder / "result.json").write_text(json.dumps(result))
    assert package_main(["report", str(folder)]) == 2
    assert "12 genes for parts of 1,000,000,000,008 genes" in capsys.readouterr().err
