"""Answers on the disk: appended whole or not at all, and nothing lost where a file was cut."""

import json
import os

import pytest

from entscale_jax.errors import UserError
from entscale_jax.reports.rating.answers import Answer, AnswerFile, rater_name, read_answers, scores_of

TIME = "2026-11-26T12:00:00+00:00"


def answer(cell, score):
    return Answer(cell=cell, score=score, time=TIME)


@pytest.fixture
def file(tmp_path):
    """A rater's file of three answers to two cells."""
    answers = AnswerFile(tmp_path, "Ann")
    for cell, score in (("a", 3), ("b", 10), ("a", 4)):
        answers.add(answer(cell, score))
    return answers.path


def test_answers_are_lines_that_are_kept_and_the_last_counts(tmp_path, file):
    assert file == tmp_path / "ratings" / "ann.jsonl"
    assert [json.loads(line)["score"] for line in file.read_text().splitlines()] == [3, 10, 4]
    again = AnswerFile(tmp_path, "ann")
    assert again.scores == {"a": 4, "b": 10}
    assert again.note is None


def test_a_file_cut_anywhere_loses_only_the_answer_that_was_cut(tmp_path, file):
    content = file.read_bytes()
    ends = [position for position in range(len(content) + 1) if content[:position].endswith(b"\n")]
    near_ends = {end + step for end in ends for step in (-2, -1, 0, 1)}
    for length in sorted({*near_ends, *range(0, len(content), 9)} & {*range(len(content) + 1)}):
        file.write_bytes(content[:length])
        aside = file.with_suffix(".cut")
        aside.unlink(missing_ok=True)
        opened = AnswerFile(tmp_path, "ann")
        opened.add(answer("c", 1))
        kept, notes = read_answers(file)
        # An answer that lacks only its line's end is whole.
        whole = sum(end <= length + 1 for end in ends)
        assert len(kept) == whole + 1
        assert kept[-1] == answer("c", 1)
        assert notes == []
        is_cut = content[:length].rpartition(b"\n")[2] != b"" and length + 1 not in ends
        assert (opened.note is not None) == is_cut
        assert aside.exists() == is_cut
        if is_cut:
            assert content[:length].endswith(aside.read_bytes()[:-1])
            assert "\n" not in opened.note
            assert f"{aside.stat().st_size - 1} bytes are set aside in ann.cut" in opened.note


def test_reading_names_what_is_no_answer_and_changes_nothing(file):
    broken = [
        "nothing",
        '{"cell": "x", "score": 11, "time": "t"}',
        '{"cell": "x", "score": true, "time": "t"}',
        "[1]",
        "\0\0",
    ]
    with open(file, "a") as opened:
        opened.write("\n".join([*broken, '{"cell": "c", "score": 1, "time": "t"}', '{"cell": "c", "sc']))
    before = file.read_bytes()
    answers, notes = read_answers(file)
    assert scores_of(answers) == {"a": 4, "b": 10, "c": 1}
    assert notes == [f"{file}: line {number} is no whole answer and is left out" for number in (4, 5, 6, 7, 8, 10)]
    assert file.read_bytes() == before


def test_an_answer_that_can_not_be_written_leaves_the_file_as_it_was(tmp_path, file, monkeypatch):
    before = file.read_bytes()
    answers = AnswerFile(tmp_path, "ann")

    def refuse(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="No space left"):
        answers.add(answer("c", 7))
    assert file.read_bytes() == before
    assert "c" not in answers.scores


@pytest.mark.parametrize(("text", "name"), [("Ann", "ann"), (" b.o_b-2 ", "b.o_b-2"), ("7", "7")])
def test_names_are_those_of_files(text, name):
    assert rater_name(text) == name


@pytest.mark.parametrize("text", ["", " ", "../ann", "a/b", ".ann", "a b", "é", "x" * 41, "a\nb", "a\0"])
def test_names_that_no_file_should_have(text):
    with pytest.raises(UserError, match="give 1 to 40 letters"):
        rater_name(text)
