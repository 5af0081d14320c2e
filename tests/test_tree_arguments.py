"""A tree belongs to its pair: shipped sizes for the shipped pair only, and never a part of them."""

import shutil

import pytest

from lit_hass.decoding import TreeConfig
from lit_hass.errors import UserError
from lit_hass.models import check_shipped_draft, own_draft, resolve_base, resolve_draft
from lit_hass.modules import EvaluationModule, GenerationModule, RationaleModule
from lit_hass.star.loop import _longest, star
from lit_hass.star.settings import Settings
from lit_hass.tree_arguments import check_tree_arguments

SHIPPED, PUBLISHED = TreeConfig(29, 27, 1, trim=True), TreeConfig(60, 5, 10)
NAME = "html_to_tsv"


@pytest.mark.parametrize(
    ("base", "draft", "tree"),
    [
        (NAME, NAME, SHIPPED),
        (resolve_base(NAME), str(resolve_draft(NAME)), SHIPPED),
        (NAME, "somebody/draft", PUBLISHED),
        ("somebody/base", str(resolve_draft(NAME)), PUBLISHED),
        ("somebody/base", "somebody/draft", PUBLISHED),
        (NAME, None, PUBLISHED),
    ],
)
def test_the_shipped_tree_is_the_shipped_pair_s_alone(base: str, draft: str | None, tree: TreeConfig) -> None:
    assert GenerationModule(base, draft).tree == RationaleModule(base, draft).tree == tree
    assert GenerationModule(base, draft, TreeConfig(6, 4, 1)).tree == TreeConfig(6, 4, 1)


def test_evaluate_takes_a_draft_of_its_base_or_none() -> None:
    assert EvaluationModule().draft == NAME and EvaluationModule().tree == SHIPPED
    assert EvaluationModule(resolve_base(NAME)).tree == SHIPPED and own_draft("somebody/base") is None
    with pytest.raises(UserError, match="none is shipped with somebody/base: give --model.draft"):
        EvaluationModule("somebody/base")
    assert EvaluationModule("somebody/base", "somebody/draft").tree == PUBLISHED


def test_a_shipped_draft_is_not_taken_for_another_base(tiny_base) -> None:
    with pytest.raises(UserError, match="is the draft of the shipped base html_to_tsv, not of"):
        GenerationModule(str(tiny_base), NAME).check()
    check_shipped_draft(resolve_base(NAME), NAME)
    check_shipped_draft(tiny_base, resolve_draft(NAME))  # by its folder it is meant


@pytest.mark.parametrize(
    "args",
    [
        ["--model.tree.total_tokens", "60"],
        ["--model.init_args.tree.depth=5", "--model.tree.top_k", "3"],
        ["--model.tree", "{total_tokens: 60}"],
        ["--model.tree.trim", "false"],
    ],
)
def test_a_part_of_a_tree_is_refused(args: list[str]) -> None:
    with pytest.raises(UserError, match=r"command line gives model\.tree\..*give all three or none"):
        check_tree_arguments(["evaluate", *args])


def test_star_refuses_a_part_of_a_tree(tmp_path) -> None:
    with pytest.raises(UserError, match="give all three or none"):
        star(["--out", str(tmp_path / "loop"), "--model.draft", NAME, "--model.tree.depth", "3"])
    assert not (tmp_path / "loop").exists()


def test_the_shipped_pair_stays_one_through_the_iterations_of_star(tmp_path, tiny_base) -> None:
    with pytest.raises(UserError, match="is the draft of the shipped base html_to_tsv, not of"):
        Settings(["--model.base", str(tiny_base), "--model.draft", NAME])
    trained = tmp_path / "iter_0" / "checkpoint"
    shutil.copytree(resolve_base(NAME), trained)
    for more, tree in (
        ([], SHIPPED),
        (["--model.tree", "{total_tokens: 6, depth: 2, top_k: 3}"], TreeConfig(6, 2, 3)),
    ):
        settings = Settings(["--model.base", NAME, "--model.draft", NAME, *more])
        first, second = settings.module(settings.base, 0), settings.module(str(trained), 1)
        second.check()
        assert first.tree == second.tree == tree and second.draft == str(resolve_draft(NAME))
        assert first.resume_settings()["draft"] == GenerationModule(NAME, NAME).resume_settings()["draft"]


def test_star_trains_on_no_more_tokens_than_the_run_has_context_for(tiny_base) -> None:
    given = ["--model.base", str(tiny_base)]
    assert _longest(Settings(given)) == 512
    assert _longest(Settings([*given, "--model.context", "40"])) == 40
    assert _longest(Settings([*given, "--model.context", "40", "--data.max_length", "30"])) == 30


def test_whole_trees_and_none_are_taken(tmp_path) -> None:
    file = tmp_path / "mine.yaml"
    with pytest.raises(UserError, match=r"missing\.yaml: no such configuration"):
        check_tree_arguments(["evaluate", "--model.base", "x", "-c", str(tmp_path / "missing.yaml")])
    check_tree_arguments(["evaluate", *"--model.tree.total_tokens 6 --model.tree.depth=2 --model.tree.top_k 3".split()])
    check_tree_arguments(["evaluate", "--model.tree", "null"])
    check_tree_arguments(["evaluate", "--model.tree={total_tokens: 6, depth: 2, top_k: 3}"])
    for tree in ("null", "{total_tokens: -1, depth: 5, top_k: 10}"):
        file.write_text(f"model:\n  class_path: x\n  init_args:\n    tree: {tree}\n")
        check_tree_arguments(["predict", "-c", str(file)])
    for whole in ("model: {init_args: {tree: {total_tokens: 60}}}", "model: {tree: {depth: 3, top_k: 2}}"):
        file.write_text(whole)
        for option in (["-c", str(file)], [f"--config={file}"]):
            with pytest.raises(UserError, match=r"mine\.yaml gives model\.tree\..* without"):
                check_tree_arguments(["predict", *option])


@pytest.mark.parametrize("value", ["2026-13-45", "[" * 3000, "\x07", "9" * 5000, "{[a]: 1}", "{1: 2}", "- a", "{"])
def test_what_is_no_tree_is_left_to_the_parser_or_refused_in_one_line(value: str, tmp_path) -> None:
    check_tree_arguments(["evaluate", "--model.tree", value])
    check_tree_arguments(["evaluate", f"--model.tree={value}"])
    file = tmp_path / "mine.yaml"
    file.write_text(value)
    with pytest.raises(UserError, match=r"mine\.yaml") as error:
        check_tree_arguments(["predict", "-c", str(file)])
    assert "\n" not in str(error.value)
