"""What a person reads of collapse metrics: table, Markdown, pictures, page, TensorBoard."""

import base64
import copy
import io
import math
import warnings
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from lit_hass.records import write_json
from lit_hass.reports.collapse_board import (
    add_histograms,
    curves,
    layout,
    scalars,
    write_board,
    write_class_means,
    write_side_by_side,
)
from lit_hass.reports.collapse_comparability import comparability
from lit_hass.reports.collapse_page import runs_to_html
from lit_hass.reports.collapse_plot import (
    chunks_figure,
    cosine_figure,
    scopes_figure,
    spectrum_figure,
    to_png,
    tokens_figure,
)
from lit_hass.reports.collapse_rows import collapse_rows, extreme_tokens, figure
from lit_hass.reports.collapse_run import CollapseSubject, read_runs
from lit_hass.reports.collapse_view import print_collapse, to_markdown
from tests.reports.collapse_data import metrics_dict, write_collapse_run
from tests.reports.test_comparison_views import Page

FIGURES = (chunks_figure, scopes_figure, spectrum_figure, tokens_figure)


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two methods."""
    folder = tmp_path_factory.mktemp("evaluation")
    write_collapse_run(folder / "baseline", metrics_dict(draft=False))
    write_collapse_run(folder / "hass", metrics_dict())
    return folder


@pytest.fixture(scope="module")
def pair(evaluation: Path):
    return read_runs([evaluation])[0].subjects


def nothing_measured(metrics):
    """The same run with every family switched off or undefined."""
    empty = copy.deepcopy(metrics)
    empty |= {"token_metrics": None, "family": None, "states": None, "spectra": None, "chunk_metrics": None}
    empty |= {"equal_rows": None, "spectra_sums": None}
    empty |= {"overall_metrics": None, "chunks": [], "total_tokens": 0}
    return empty


def printed(subjects, statements=(), width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    print_collapse(subjects, statements, console)
    return console.file.getvalue()


def test_both_methods_stand_side_by_side(pair) -> None:
    assert [subject.label for subject in pair] == ["baseline", "hass"]
    statements = comparability(*pair)
    text = printed(pair, statements)
    rows = {line[1:34].rstrip(): line for line in text.splitlines() if line.startswith(" ")}
    value = figure(pair[1].value("gnc2/mean"))
    assert rows["GNC2 (mean)"].split()[-3:] == [value, value, "0"] and "≈" not in text
    assert rows["draft and base, CKA"].split()[-2:] == ["–", figure(pair[1].value("cka/linear", "answer"))]
    rejected = pair[1].metrics["states"]["rejected"]
    shown = ["–", figure(rejected["normalized_entropy"]), f"({rejected['rows']})"]
    assert rows["rejected, normalised (rows)"].split()[-3:] == shown
    assert "(CKA): not comparable: baseline has no draft" in text
    assert "comparable: SVD entropies, spectra and ranks; " in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 80
    markdown = to_markdown(pair, statements)
    assert "| GNC2 (mean) | " + value in markdown and "* similarity of draft and base (CKA): not comparable" in markdown
    table = markdown.split("\n\n")[0].splitlines()
    assert len({line.count("|") for line in table}) == 1 and len(table) == 2 + len(collapse_rows(pair, statements))


def test_states_are_shown_by_as_many_rows_of_each(pair) -> None:
    statements = comparability(*pair)
    rows = {row.label: row for row in collapse_rows(pair, statements)}
    found = [subject.metrics["equal_rows"] for subject in pair]
    common = min(int(0.8 * state["rows"]) for subject in pair for state in subject.metrics["states"].values())
    size = max(each for each in (16, 24, 32, 48, 64, 96, 128, 256) if each <= common)
    for state, streams in (("rejected", found[1:]), ("prompt", found), ("baseline", found[:1])):
        shown = [cell for cell in rows[f"{state}, normalised, {size} rows"].cells if cell != "–"]
        for cell, streams_of in zip(shown, streams, strict=True):
            each = streams_of[state][str(size)]
            middle, reach = cell.split(" ±")
            assert middle == figure(each["normalized_entropy"])
            ends = [abs(each[f"normalized_{end}"] - each["normalized_entropy"]) for end in ("low", "high")]
            assert float(reach) == pytest.approx(max(ends), abs=6e-5)
    assert rows[f"prompt, normalised, {size} rows"].difference == "0"
    assert f"answer, normalised, {size} rows" in rows  # accepted and bonus together
    alone = {row.label for row in collapse_rows(pair[:1], [])}
    assert not any(label.startswith("answer, normalised") for label in alone)  # which would be the baseline again
    text = " ".join(printed(pair, statements).split())
    assert "by which states are comparable (over all their rows they are not" in text
    axis = scopes_figure(pair).axes[0]
    assert f"of {size} rows each" in axis.get_title(loc="left")
    assert axis.patches[0].get_height() == pytest.approx(found[0]["prompt"][str(size)]["normalized_entropy"])


def test_a_sample_is_said_and_shown_by_its_rows(pair, tmp_path: Path) -> None:
    metrics = copy.deepcopy(pair[1].metrics)
    token = max(metrics["token_metrics"], key=lambda key: metrics["token_metrics"][key]["num_samples"])
    metrics["token_metrics"][token] |= {"sampled": 2, "normalized_entropy": 0.0, "svd_entropy": 0.0}
    metrics["counts"] |= {"n_kept_cap": 2, "classes_left_out": 3, "n_unsampled_rows": 11}
    metrics["settings"] = {**metrics["settings"], "max_tokens_to_analyze": metrics["counts"]["classes_eligible"]}
    (subject,) = read_runs([write_collapse_run(tmp_path / "run", metrics)])[0].subjects
    text = " ".join(printed([subject]).split())
    assert "entropies of 1 tokens, and NC4, are those of a sample of their rows, at most 2 of a token" in text
    assert f"3 of {metrics['counts']['classes_eligible']} token classes are left out" in text
    assert "11 rows are in no sample" in text and "most frequent tokens (max_tokens_to_analyze)" in text
    assert extreme_tokens(subject)[0][2] == f"2 of {metrics['token_metrics'][token]['num_samples']}"
    points = tokens_figure([subject]).axes[1].collections[0].get_offsets()
    assert points[:, 0].max() < metrics["token_metrics"][token]["num_samples"]  # it lies under the bound of 2 rows


def test_shares_of_a_spectrum_are_of_its_whole_sum(pair, tmp_path: Path) -> None:
    metrics = copy.deepcopy(pair[1].metrics)
    whole = metrics["spectra"]["overall"]
    metrics["spectra"]["overall"] = whole[:10]  # as of wide features: only the largest are listed
    (subject,) = read_runs([write_collapse_run(tmp_path / "run", metrics)])[0].subjects
    line = spectrum_figure([subject]).axes[0].get_lines()[0]
    assert line.get_ydata() == pytest.approx(np.array(whole[:10]) / sum(whole))


def earlier(metrics, variant: str = "a"):
    """The same as the first version wrote it."""
    old = copy.deepcopy(metrics)
    old["meta"]["schema_version"] = 1
    old["settings"] = {**old["settings"], "svd_variant": variant}
    del old["equal_rows"], old["spectra_sums"]
    for values in (*old["family"].values(), *old["undefined"].values()):
        for name in list(values):
            if name.startswith(("rank/raw/", "rank/centred/")):
                values["rank/" + name.rsplit("/")[-1]] = values.pop(name)
    return old


def test_files_of_an_earlier_version_are_read_by_their_names(pair, tmp_path: Path) -> None:
    old = earlier(pair[1].metrics)
    assert "rank/effective_rank" in old["family"]["overall"]
    (subject,) = read_runs([write_collapse_run(tmp_path / "run", old)])[0].subjects
    for name in ("raw/effective_rank", "raw/rankme", "centred/stable_rank", "centred/alpha_req", "lidar"):
        assert subject.value(f"rank/{name}") == pair[1].value(f"rank/{name}") is not None
    rows = {row.label: row for row in collapse_rows([pair[1], subject], comparability(pair[1], subject))}
    assert rows["effective rank"].difference == "0" and rows["SVD entropy per token"].difference == "0"
    assert to_png(spectrum_figure([subject])) and runs_to_html(read_runs([tmp_path / "run"]))


def test_numbers_that_an_earlier_version_got_wrong_are_not_shown(pair, tmp_path: Path) -> None:
    old = earlier(pair[1].metrics, "b")
    (subject,) = read_runs([write_collapse_run(tmp_path / "centred", old)])[0].subjects
    assert subject.value("svd_entropy/normalized") is None and subject.value("svd_entropy/overall") is not None
    assert "cannot reach" in (subject.reason("svd_entropy/normalized") or "")
    assert {each["normalized_entropy"] for each in subject.metrics["states"].values()} == {None}
    assert subject.analysis["chunk_analysis"]["normalized_entropies"] == [None] * 5
    assert extreme_tokens(subject) == [] and printed([subject])
    old = earlier(pair[1].metrics)
    for token in old["token_metrics"].values():
        token |= {"svd_entropy": 0.0, "sampled": 1, "normalized_entropy": None}
    old["states"]["bonus"] = {"rows": 1, "svd_entropy": 0.0, "normalized_entropy": None}
    (subject,) = read_runs([write_collapse_run(tmp_path / "sample", old)])[0].subjects
    assert subject.analysis["summary"]["avg_svd_entropy"] is None
    why = subject.reason("svd_entropy/token_mean") or ""
    assert subject.value("svd_entropy/token_mean") is None and "one row" in why
    assert subject.metrics["states"]["bonus"]["svd_entropy"] is None
    assert subject.value("gnc2/mean") == pair[1].value("gnc2/mean")


def test_what_is_undefined_is_a_dash_with_its_reason(tmp_path: Path) -> None:
    metrics = metrics_dict()
    metrics["family"]["overall"]["gnc2/mean"] = None
    metrics["undefined"]["overall"] = {"gnc2/mean": "only one class has 2 rows"}
    metrics["errors"] = [{"metric": "nc4", "type": "LinAlgError", "message": "no convergence"}]
    metrics["counts"]["n_dropped_rows"] = 12
    run = read_runs([write_collapse_run(tmp_path / "run", metrics)])
    for text in (printed(run[0].subjects, width=200), to_markdown(run[0].subjects), runs_to_html(run)):
        assert "only one class has 2 rows" in text and "gnc2/mean" in text
        assert "nc4 failed: LinAlgError: no convergence" in text and "12 rows were lost to failures" in text
    rows = {row.label: row for row in collapse_rows(run[0].subjects, [])}
    assert rows["GNC2 (mean)"].cells == ("–",) and "NC9" not in rows
    assert "12 lost to failures" in rows["left out"].cells[0]


def test_plain_text_has_no_answers(tmp_path: Path) -> None:
    metrics = metrics_dict(draft=False)
    metrics["family"]["answer"] = dict.fromkeys(metrics["family"]["answer"])
    metrics["undefined"]["answer"] = dict.fromkeys(metrics["family"]["answer"], "there are no rows")
    run = read_runs([write_collapse_run(tmp_path / "run", metrics)])
    text = printed(run[0].subjects)
    assert "of answers" not in text and "of prompts" not in text and "GNC2 (mean)" in text
    assert text.count("there are no rows") == 1 and "run, answer: all of it: there are no rows" in text


def test_rounding_is_no_difference(pair, tmp_path: Path) -> None:
    metrics = copy.deepcopy(pair[0].metrics)
    metrics["family"]["overall"]["gnc2/mean"] *= 1 + 5e-7
    metrics["family"]["overall"]["unc3/cov_abs"] *= 1 + 5e-6
    other = CollapseSubject("other", tmp_path, metrics, pair[0].analysis)
    text = printed([pair[0], other], comparability(pair[0], other))
    rows = {line[1:34].rstrip(): line for line in text.splitlines() if line.startswith(" ")}
    assert rows["GNC2 (mean)"].endswith("≈ 0 ") and rows["UNC3 (cov_abs)"].rstrip()[-4:-2] == "e-"
    assert "≈ 0: less than a millionth" in text and "≈ 0: less" in to_markdown([pair[0], other])


def test_a_stopped_run_is_shown_as_far_as_it_got(pair, tmp_path: Path) -> None:
    metrics = copy.deepcopy(pair[1].metrics)
    metrics["meta"] |= {"complete": False, "questions": 4}
    write_json(tmp_path / "run" / "collapse_metrics.partial.json", metrics)
    (subject,) = read_runs([tmp_path / "run"])[0].subjects
    assert subject.label == "run (part)" and "stopped; these are the 4 questions" in " ".join(
        printed([subject]).split()
    )
    for rank in (0, 1):
        write_json(tmp_path / "ranks" / f"collapse_metrics.partial.rank{rank}.json", metrics)
    labels = [subject.label for subject in read_runs([tmp_path / "ranks"])[0].subjects]
    assert labels == ["ranks (part of rank0)", "ranks (part of rank1)"]
    write_collapse_run(tmp_path / "ranks", pair[1].metrics)
    assert [subject.label for subject in read_runs([tmp_path / "ranks"])[0].subjects] == ["ranks"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "–"), (0.0, "0.0000"), (-0.34271, "-0.3427"), (1.5e-7, "1.500e-07"), (123456.7, "123456.7000")],
)
def test_figures(value, shown) -> None:
    assert figure(value) == shown


def test_the_most_collapsed_tokens_come_first(pair) -> None:
    rows = extreme_tokens(pair[1], most=5)
    lowest = sorted(t["normalized_entropy"] for t in pair[1].metrics["token_metrics"].values())[:5]
    assert [row[4] for row in rows] == [figure(value) for value in lowest]
    assert all("\n" not in row[1] and "\\n" in row[1] for row in rows)


@pytest.mark.parametrize("draw", FIGURES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("kind", ["one", "pair", "five", "empty"])
def test_figures_are_drawn_whatever_is_missing(draw, kind, pair, tmp_path: Path) -> None:
    metrics = pair[1].metrics
    subjects = {"one": pair[1:], "pair": pair, "five": [*pair, *pair, pair[0]]}.get(kind)
    if subjects is None:
        subjects = read_runs([write_collapse_run(tmp_path / "empty", nothing_measured(metrics))])[0].subjects
    drawn = draw(subjects)
    picture = imread(io.BytesIO(to_png(drawn)))
    assert picture.shape[0] > 400 and picture.shape[1] > 1200
    for axis in drawn.axes:
        assert axis.get_title(loc="left") and (axis.get_ylabel() or kind == "empty")
        legend = axis.get_legend()
        assert (legend is None) == (kind == "empty")
        if legend is not None:
            assert len(legend.get_texts()) >= 1


def test_the_spectrum_is_that_of_the_file(pair) -> None:
    line = spectrum_figure(pair[1:]).axes[0].get_lines()[0]
    eigenvalues = np.array(pair[1].metrics["spectra"]["overall"])
    assert line.get_ydata() == pytest.approx(eigenvalues / eigenvalues.sum())
    assert list(line.get_xdata()) == list(range(1, len(eigenvalues) + 1))


def test_a_run_whose_name_is_no_formula(pair, tmp_path: Path) -> None:
    run = read_runs([write_collapse_run(tmp_path / "cost$ and $x^{", pair[1].metrics)])
    assert to_png(chunks_figure(run[0].subjects)) and "cost$ and $x^{" in runs_to_html(run)


def test_the_page_stands_alone(evaluation: Path) -> None:
    text = runs_to_html(read_runs([evaluation]))
    page = Page()
    page.feed(text)
    assert page.open == [] and page.links == [] and not page.seen & {"script", "link", "iframe", "tok"}
    assert len(page.images) == 4
    for image in page.images:
        assert imread(io.BytesIO(base64.b64decode(image.partition("base64,")[2]))).size
    assert "What may be compared" in text and "&lt;tok\\n7&gt;" in text and "all " in text
    assert "compare speeds of runs that did not" not in text  # nothing was timed or said of speed here


def test_what_was_not_measured_leaves_a_page(pair, tmp_path: Path) -> None:
    run = read_runs([write_collapse_run(tmp_path / "empty", nothing_measured(pair[1].metrics))])
    page = Page()
    page.feed(runs_to_html(run))
    assert page.open == [] and len(page.images) == 4
    assert printed(run[0].subjects)


def board_of(folder: Path) -> EventAccumulator:
    sizes = {"scalars": 0, "images": 0, "histograms": 0, "tensors": 0}
    return EventAccumulator(str(folder), size_guidance=sizes).Reload()


def test_scalars_are_finite_and_named_by_scope(pair) -> None:
    metrics = copy.deepcopy(pair[1].metrics)
    metrics["family"]["overall"]["gnc2/mean"] = None
    metrics["family"]["overall"]["gnc2/std"] = math.inf
    metrics["states"]["baseline"] = {"rows": 0, "svd_entropy": None, "normalized_entropy": None}
    found = scalars(metrics)
    assert all(math.isfinite(value) for value in found.values())
    assert "collapse/gnc2/mean" not in found and "collapse/gnc2/std" not in found
    assert found["collapse/prompt/gnc2/mean"] == metrics["family"]["prompt"]["gnc2/mean"]
    assert found["collapse/answer/cka/linear"] == metrics["family"]["answer"]["cka/linear"]
    states = metrics["states"]
    assert found["collapse/state/normalized_entropy/rejected"] == states["rejected"]["normalized_entropy"]
    assert not any(tag.endswith("/baseline") for tag in found if "state/" in tag)
    assert found["collapse/diagnostics/n_special"] == metrics["counts"]["n_special"]


def test_the_board_reads_back(pair, tmp_path: Path) -> None:
    subject = pair[1]
    with SummaryWriter(str(tmp_path)) as board:
        for tag, value in scalars(subject.metrics).items():
            board.add_scalar("hass/" + tag, value, 6)
        write_board(board, subject, 6, "hass/")
        write_side_by_side(board, pair, 6)
        ids = np.array([7, 3, 9], dtype=np.int64)
        write_class_means(board, subject, ids, np.array([2, 30, 5]), np.eye(3, 24), 6, "hass/")
        board.add_custom_scalars(layout(["baseline/", "hass/"]))
    found = board_of(tmp_path)
    tags = found.Tags()
    along = [(e.step, e.value) for e in found.Scalars("hass/collapse/along_the_text/svd_entropy")]
    assert along == [
        (k, pytest.approx(value, rel=1e-6))
        for k, value in enumerate(subject.metrics["chunk_metrics"]["chunk_svd_entropies"], start=1)
    ]
    assert {f"collapse_side_by_side/{name}" for name in ("spectrum", "tokens")} <= set(tags["images"])
    assert {"hass/collapse/spectrum", "hass/collapse/class_cosines"} <= set(tags["images"])
    assert "hass/collapse/token_entropy" in tags["histograms"]
    assert "custom_scalars__config__" in tags["tensors"]
    # Every chart of the tab that this run can fill draws a tag that is there.
    written = set(tags["scalars"])
    for charts in [layout(["hass/"])["representation collapse"]]:
        assert all(written & set(chart_tags) for _, chart_tags in charts.values())
    (labels,) = tmp_path.rglob("metadata.tsv")
    rows = [line.split("\t") for line in labels.read_text(encoding="utf-8").splitlines()]
    assert rows[0] == ["token", "id", "rows", "svd_entropy"] and [row[1] for row in rows[1:]] == ["3", "9", "7"]
    assert rows[1][0] == "'<tok\\n3>'" and all(len(row) == 4 for row in rows)
    (vectors,) = tmp_path.rglob("tensors.tsv")
    assert np.loadtxt(vectors) == pytest.approx(np.eye(3, 24)[[1, 2, 0]])


def test_curves_with_holes_and_empty_histograms_are_left_out(pair, tmp_path: Path) -> None:
    subject = copy.deepcopy(pair[1])
    subject.analysis["chunk_analysis"]["chunk_entropies"][2] = None
    assert list(curves(subject)) == ["collapse/along_the_text/normalized"]
    with SummaryWriter(str(tmp_path)) as board:
        add_histograms(board, {"a": [], "b": [math.nan, math.inf], "c": [1.0, math.nan, 2.0]}, 0)
    found = board_of(tmp_path)
    assert found.Tags()["histograms"] == ["c"]
    assert found.Histograms("c")[0].histogram_value.num == 2


def test_cosines_of_strange_tokens_are_labelled() -> None:
    cosines = np.eye(70)[:40, :40]
    drawn = cosine_figure(cosines, [repr(f"$x_{i}\t") for i in range(40)])
    labels = [label.get_text() for label in drawn.axes[0].get_xticklabels()]
    assert to_png(drawn) and labels[0] == "'$x_0\\t'" and len(labels) <= 24


def test_tokens_that_the_font_does_not_have_are_escaped() -> None:
    drawn = cosine_figure(np.eye(3), ["' the'", "'中'", "'é'"])
    names = [label.get_text() for label in drawn.axes[0].get_yticklabels()]
    assert names == ["' the'", r"'\u4e2d'", "'é'"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        to_png(drawn)
