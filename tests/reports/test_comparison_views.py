"""What a person reads of a comparison: the table, Markdown, the picture and the page."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib.image import imread
from rich.console import Console

from lit_hass.errors import UserError
from lit_hass.reports import compare_runs, print_comparison, write_comparison
from lit_hass.reports.comparison_page import to_html
from lit_hass.reports.comparison_plot import plot_comparison
from lit_hass.reports.comparison_rows import figure_rows
from lit_hass.reports.comparison_view import to_markdown
from lit_hass.reports.screen import Screen
from tests.reports.run_folders import DRAFT, line, turn, write_run

IDS = list(range(3, 20))


def lines(drafted: bool, broken: bool = False):
    found = []
    for number in range(25):
        ids = [*IDS[:-1], 99] if broken and number == 7 else IDS
        text = "<b>|bold|</b>\n[red]" if broken and number == 7 else "x"
        seconds = (0.5 if drafted else 1.5) + 0.01 * number
        accepted = [number % 5, 4, 3] if drafted else []
        found.append(line(number, [turn(ids, seconds, accepted, prefill=0.1, text=text, exact_match=True)]))
    return found


def comparison(folder: Path, broken: bool = False, drafted: bool = True, model=None, allow: bool = False):
    one = write_run(folder / "baseline", lines(False))
    draft = DRAFT if drafted else {}
    other = write_run(folder / "hass", lines(drafted, broken), {**draft, **(model or {})})
    categories = {number: "ab"[number % 2] for number in range(25)}
    return compare_runs(one, other, allow, categories=categories)


def printed(found, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    print_comparison(found, console)
    return console.file.getvalue()


def test_the_table_has_the_figures_and_fits_80_columns(tmp_path: Path) -> None:
    found = comparison(tmp_path)
    text = printed(found)
    rows = {row.split("  ")[0].strip(): row for row in text.splitlines() if row.startswith(" ")}
    speed = found["speed"]["end_to_end"]
    row = rows["tokens/s end to end"]
    assert re.findall(r"[\d.]+x?", row) == [
        f"{speed['baseline']:.1f}", f"{speed['hass']:.1f}", f"{speed['ratio']:.2f}x",
        f"{speed['interval'][0]:.2f}", f"{speed['interval'][1]:.2f}",
    ]  # fmt: skip
    assert f"{found['acceptance']['hass']['micro']:.2f}" in rows["acceptance length"]
    assert "100.0% (25/25)" in rows["exact match"] and "100.0% (25/25)" in rows["identical answers"]
    assert "Lossless: 25 of 25" in text and f"{speed['ratio']:.2f}x the baseline's" in text
    assert "DIFFERENCE" not in text
    # one row a figure: nothing was wrapped
    table = [row for row in text.splitlines() if row.startswith(" ")]
    assert len(table) == 1 + len(figure_rows(found)) and max(map(len, text.splitlines())) <= 80


def test_processor_time_stands_above_wall_time_and_fits_too(tmp_path: Path) -> None:
    def spent(drafted: bool):
        found = lines(drafted)
        for number, answer in enumerate(found):
            seconds = (0.4 if drafted else 1.4) + 0.01 * (number % 7)
            answer["choices"][0] |= {
                "processor_time": [seconds], "processor_prefill_time": [0.1],
                "processor_times": [[seconds, 1.1 * seconds, 1.2 * seconds]], "wall_times": [[1.0, 1.0, 1.0]],
            }  # fmt: skip
            answer["load"] = 7.25
        return found

    one = write_run(tmp_path / "baseline", spent(False))
    found = compare_runs(one, write_run(tmp_path / "hass", spent(True), DRAFT))
    text = printed(found)
    table = [row for row in text.splitlines() if row.startswith(" ")]
    labels = [row.split("  ")[0].strip() for row in table]
    assert labels.index("tokens/CPU s end to end") < labels.index("tokens/s end to end")
    assert max(map(len, text.splitlines())) <= 80 and "load of the machine was 7.2" in " ".join(text.split())
    said, speed = " ".join(text.split()), found["speed"]
    assert f"{speed['processor']['end_to_end']['ratio']:.2f}x the baseline's tokens per processor second" in said
    assert f"by the clock on the wall {speed['end_to_end']['ratio']:.2f}x" in said and "over questions" in said
    page = to_html(found, plot_comparison(found))
    assert "tokens/CPU s baseline" in page and "tokens/CPU s end to end" in to_markdown(found)


def test_collapse_stands_in_the_table_where_it_was_measured(tmp_path: Path) -> None:
    plain = comparison(tmp_path / "plain")
    assert plain["collapse"] == {"baseline": None, "hass": None}
    assert not any(row.label in ("SVD entropy", "GNC2", "UNC3") for row in figure_rows(plain))
    for run, cka in (("baseline", None), ("hass", 0.5)):
        (tmp_path / "measured" / run).mkdir(parents=True)
        (tmp_path / "measured" / run / "collapse_metrics.json").write_text(
            json.dumps(
                {
                    "overall_metrics": {"svd_entropy": 3.25, "gnc2": -0.5, "unc3": None},
                    "family": {"answer": {"cka/linear": cka}},
                }
            )
        )
    found = comparison(tmp_path / "measured")
    rows = {row.label: row[1:3] for row in figure_rows(found)}
    assert rows["SVD entropy"] == ("3.2500", "3.2500") and rows["GNC2"] == ("-0.5000", "-0.5000")
    assert "UNC3" not in rows and rows["CKA of draft and base"][1] == "0.5000"
    assert all(label in printed(found) and label in to_markdown(found) for label in ("SVD entropy", "GNC2"))


def test_a_loss_and_differences_are_loud_everywhere(tmp_path: Path) -> None:
    found = comparison(tmp_path, broken=True)
    for text in (printed(found), to_markdown(found), to_html(found, b"")):
        assert "NOT LOSSLESS: only 24 of 25" in text
    unfair = comparison(tmp_path / "unfair", model={"max_new_tokens": 9}, allow=True)
    for text in (printed(unfair), to_markdown(unfair), to_html(unfair, b"")):
        assert "model.max_new_tokens" in text and "No headline" in text and "Losslessness not judged" in text
    assert "DIFFERENCE model.max_new_tokens (distribution): 64 against 9" in printed(unfair)


def test_markdown_has_whole_tables(tmp_path: Path) -> None:
    found = comparison(tmp_path, broken=True)
    text = to_markdown(found)
    tables = re.findall(r"(?:^\|.*\|$\n?)+", text, flags=re.MULTILINE)
    assert len(tables) == 3  # figures, categories, differing answers
    for table in tables:
        rows = table.strip().splitlines()
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1 and set(rows[1]) == {"|", "-"}
    assert "| a | 13 |" in text and "| 7 | 0 | 0 | 16 | 19 | 99 |" in text


def test_ids_and_categories_stay_text_in_markdown_and_on_the_screen(tmp_path: Path) -> None:
    nasty = "<script>alert(1)</script> [a](http://b.c) `x` *b* ![p](q)"
    answers = [
        [line(nasty, [turn([5, 6, last], 1.0, accepted, prefill=0.1)])] for last, accepted in ((7, []), (8, [1]))
    ]
    one = write_run(tmp_path / "<b>one", answers[0])
    other = write_run(tmp_path / "a`b\x1b[2J", answers[1], DRAFT)
    found = compare_runs(one, other, categories={nasty: nasty})
    text = to_markdown(found)
    assert (
        "<script" not in text and not re.search(r"(?<!\\)\]\(http", text) and "<b>" not in text.replace(f"`{one}`", "")
    )
    assert text.count(r"&lt;script&gt;alert(1)&lt;/script&gt; \[a\](http://b.c) \`x\` \*b\* !\[p\](q)") == 2
    assert f"`` {other} ``".replace("\x1b", r"\x1b") in text
    assert "<script" not in to_html(found, b"")
    shown = io.StringIO()
    print_comparison(found, Screen(file=shown, width=200))
    assert "\x1b" not in shown.getvalue() and r"a`b\x1b[2" in shown.getvalue()
    # Styles of our own stay where the screen has them.
    coloured = io.StringIO()
    print_comparison(found, Screen(file=coloured, width=200, force_terminal=True, color_system="standard"))
    assert "\x1b[1m" in coloured.getvalue() and "\x1b[2J" not in coloured.getvalue()


class Page(HTMLParser):
    """Checks that what opens closes, and gathers cells."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.images: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)
        values = dict(attrs)
        self.links += [v for k, v in values.items() if k in ("href", "src") and not str(v).startswith("data:")]
        if tag == "img":
            self.images.append(values["src"])
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_stands_alone_and_escapes_answers(tmp_path: Path) -> None:
    found = comparison(tmp_path, broken=True)
    png = plot_comparison(found)
    text = to_html(found, png)
    page = Page()
    page.feed(text)
    assert page.open == [] and page.links == [] and "b" not in page.seen and "script" not in page.seen
    assert base64.b64decode(page.images[0].removeprefix("data:image/png;base64,")) == png
    assert "&lt;b&gt;|bold|&lt;/b&gt;" in text


@pytest.mark.parametrize("drafted", [True, False])
def test_the_picture_shows_something(tmp_path: Path, drafted: bool) -> None:
    picture = imread(io.BytesIO(plot_comparison(comparison(tmp_path, drafted=drafted))))
    height, width, _ = picture.shape
    assert width > height > 400
    # each panel has ink of our colour
    panels = 3 if drafted else 2
    blue = (picture[..., 2] > 0.8) & (picture[..., 0] < 0.3)
    for i in range(panels):
        assert blue[:, i * width // panels : (i + 1) * width // panels].sum() > 50


def test_unknown_times_are_drawn_as_nothing_known(tmp_path: Path) -> None:
    found = comparison(tmp_path, drafted=False)
    for question in found["questions"]:
        question["speedup"] = question["baseline"]["tokens_per_second"] = None
    assert plot_comparison(found).startswith(b"\x89PNG")


def test_files_are_written_whole(tmp_path: Path) -> None:
    found = comparison(tmp_path, broken=True)
    out = tmp_path / "new" / "out"
    paths = write_comparison(out, found)
    assert sorted(out.iterdir()) == sorted(paths)
    assert {p.name for p in paths} == {"comparison.json", "comparison.md", "comparison.png", "report.html"}
    assert json.loads((out / "comparison.json").read_text(encoding="utf-8")) == found
    assert imread(out / "comparison.png").shape[2] == 4
    before = (out / "report.html").read_bytes()
    write_comparison(out, found)
    assert (out / "report.html").read_bytes() == before and sorted(out.iterdir()) == sorted(paths)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="cannot write into folder"):
        write_comparison(tmp_path / "file" / "out", comparison(tmp_path))
