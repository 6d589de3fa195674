"""The commands that measure: one section of a document is written, and a mistake is one line before any measuring."""

import pytest

from entscale_jax.scenes.section import write_section

TEXT = "# Title\n\n<!-- measured: one -->\nold\n<!-- end of measured: one -->\n"


@pytest.fixture
def document(tmp_path):
    file = tmp_path / "document.md"
    file.write_text(TEXT)
    return file


def never(*_):
    raise AssertionError("measured")


def test_what_was_measured_of_the_named_model_stands_in_the_section(document, tiny_folder):
    def measure(pipe, path):
        return [f"{pipe.info.train_size} {path.name}"]

    write_section("one", measure, [str(document), "--model", str(tiny_folder)])
    assert document.read_text() == TEXT.replace("\nold\n", "\n\n(32, 32) document.md\n\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "the following arguments are required: document"),
        (["no-such.md"], "no-such.md can't be read"),
        (["{document}", "--model", "/no/such"], "'/no/such' does not exist"),
    ],
)
def test_a_mistake_is_told_before_anything_is_measured(document, capsys, arguments, said):
    with pytest.raises(SystemExit) as stop:
        write_section("one", never, [part.format(document=document) for part in arguments])
    assert stop.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]
    assert document.read_text() == TEXT


def test_a_document_without_the_section_is_refused_before_anything_is_measured(document, capsys):
    with pytest.raises(SystemExit):
        write_section("two", never, [str(document)])
    assert "has no section 'two'" in capsys.readouterr().err
