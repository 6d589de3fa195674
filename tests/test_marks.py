"""Generated sections of a document: only what stands between the marks of one name changes."""

import pytest

from entscale_jax.errors import UserError
from entscale_jax.marks import replace_section

TEXT = """# Title

<!-- measured: one -->

old

<!-- end of measured: one -->

By hand.

<!-- measured: two -->
<!-- end of measured: two -->
"""


@pytest.fixture
def document(tmp_path):
    file = tmp_path / "document.md"
    file.write_text(TEXT)
    return file


def test_only_the_named_section_changes(document):
    replace_section(document, "one", ["first", "second"])
    assert document.read_text() == TEXT.replace("old", "first\nsecond")


def test_an_empty_section_is_filled_and_filling_again_changes_nothing(document):
    for _ in range(2):
        replace_section(document, "two", ["| a |"])
        assert document.read_text().endswith(
            "By hand.\n\n<!-- measured: two -->\n\n| a |\n\n<!-- end of measured: two -->\n"
        )


@pytest.mark.parametrize(
    "broken",
    [
        TEXT.replace("<!-- measured: one -->", ""),
        TEXT.replace("<!-- end of measured: one -->", ""),
        TEXT + TEXT,
        TEXT.replace("<!-- measured: one -->", "<!-- end of measured: one -->", 1).replace(
            "<!-- end of measured: one -->\n\nBy", "<!-- measured: one -->\n\nBy"
        ),
    ],
)
def test_missing_doubled_or_swapped_marks_are_named_and_nothing_is_written(document, broken):
    document.write_text(broken)
    with pytest.raises(UserError, match=r"has no section 'one': write <!-- measured: one -->"):
        replace_section(document, "one", ["new"])
    assert document.read_text() == broken


def test_a_document_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none\.md can't be read"):
        replace_section(tmp_path / "none.md", "one", [])
