"""What docs/wordpiece.md shows is what comes out."""

import doctest

from tests.door.conftest import ROOT


def test_examples():
    # The fence that ends a block would be read as expected output, so it is taken off.
    text = (ROOT / "docs" / "wordpiece.md").read_text(encoding="utf-8").replace("```", "")
    examples = doctest.DocTestParser().get_doctest(text, {}, "wordpiece.md", None, 0)
    assert len(examples.examples) >= 10
    assert doctest.DocTestRunner().run(examples).failed == 0
