"""`predict`: what it shows for a blank, a prediction, an outcome, and what it never does."""

import math

import nbformat
import numpy as np
import pytest
import torch
from nbclient import NotebookClient

from llama_adapter_edu.course import predict

QUESTION = "How high is the loss with random prompts?"
OPTIONS = ["about 3", "about 10", "above 15"]


def shown(capsys, *arguments, outcome=None, **settings) -> str:
    guess = predict(*arguments, **settings)
    first = capsys.readouterr().out
    if outcome is None:
        return first
    guess.compare(outcome)
    return capsys.readouterr().out


def test_a_blank_shows_the_question_the_options_and_what_to_do(capsys):
    text = shown(capsys, QUESTION, options=OPTIONS, mine=...)
    assert QUESTION in text
    assert all(option in text for option in OPTIONS)
    assert "in place of `...`" in text


def test_without_a_prediction_only_the_outcome_is_shown(capsys):
    text = shown(capsys, QUESTION, options=OPTIONS, mine=..., outcome="above 15")
    assert "above 15" in text
    assert "not written down" in text
    assert "predicted" not in text


@pytest.mark.parametrize("mine", ["above 15", " Above  15", 3, 3.0, np.int64(3)])
def test_a_right_prediction_by_its_text_or_its_place(capsys, mine):
    assert "Kept" in shown(capsys, QUESTION, options=OPTIONS, mine=mine)
    text = shown(capsys, QUESTION, options=OPTIONS, mine=mine, outcome="above 15")
    assert "As you predicted." in text


def test_another_prediction_is_shown_beside_the_outcome(capsys):
    text = shown(capsys, QUESTION, options=OPTIONS, mine="about 3", outcome="above 15")
    assert "about 3" in text and "above 15" in text
    assert "Not what you predicted" in text


def test_options_that_are_numbers_are_not_places(capsys):
    text = shown(capsys, "How many?", options=[3, 1, 2], mine=1, outcome=1)
    assert "As you predicted." in text
    assert "Not what" in shown(capsys, "How many?", options=[3, 1, 2], mine=1, outcome=3)


WORDS = {  # (mine, outcome): what the comparison says
    (3, 3): "As you predicted.",
    (3, 15.4): "The outcome is 5.13 times your prediction.",
    (20, 5): "Your prediction is 4 times the outcome.",
    (100, 104): "Close: the outcome is 4.0 % above your prediction.",
    (100, 97): "Close: the outcome is 3.0 % below your prediction.",
    (0, 2.5): "The outcome is 2.5 above your prediction.",
    (2, -1): "The outcome is 3 below your prediction.",
    (-2, -8): "The outcome is 4 times your prediction.",
    (1_000_000, 1_229_760): "The outcome is 1.23 times your prediction.",
}


@pytest.mark.parametrize(("numbers", "words"), WORDS.items(), ids=str)
def test_numbers_are_compared_in_words(capsys, numbers, words):
    mine, outcome = numbers
    assert words in shown(capsys, "How many?", mine=mine, outcome=outcome)
    assert words in shown(capsys, "How many?", mine=mine, outcome=torch.tensor(float(outcome)))


def test_counts_are_shown_in_full(capsys):
    assert "1,229,760" in shown(capsys, "How many?", mine=7, outcome=1_229_760)


@pytest.mark.parametrize("mine", ["about 4", 4, 0, None, True, [1], torch.ones(2), predict])
def test_what_is_no_option_gets_one_sentence_and_is_not_kept(capsys, mine):
    text = shown(capsys, QUESTION, options=OPTIONS, mine=mine)
    assert 'is none of the options. Write one of "about 3", "about 10", "above 15".' in text
    assert "not written down" in shown(
        capsys, QUESTION, options=OPTIONS, mine=mine, outcome="about 3"
    )


@pytest.mark.parametrize("mine", ["15", "high", None, True, math.nan, math.inf, torch.ones(2), 1j])
def test_what_is_no_number_gets_one_sentence_and_is_not_kept(capsys, mine):
    assert "is no number. Write a number" in shown(capsys, QUESTION, mine=mine)
    assert "not written down" in shown(capsys, QUESTION, mine=mine, outcome=2)


def test_an_outcome_of_the_wrong_kind_is_told_and_does_not_raise(capsys):
    text = shown(capsys, QUESTION, options=OPTIONS, mine=1, outcome="about 5")
    assert "The outcome 'about 5' is none of the options" in text
    assert "The outcome nan is no number" in shown(capsys, QUESTION, mine=1, outcome=math.nan)


def test_in_a_notebook_it_is_a_box_with_a_list_and_a_table():
    ask = f"guess = predict('Is a < b?', options={OPTIONS}, mine='about 3')"
    cells = [f"from llama_adapter_edu.course import predict\n{ask}", "guess.compare('about 10')"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    asked, compared = (cell.outputs[0].data for cell in notebook.cells)
    assert "Is a &lt; b?" in asked["text/html"]
    assert asked["text/html"].count("<li>") == len(OPTIONS)
    assert '<th scope="col">your prediction</th>' in compared["text/html"]
    assert "<td>about 3</td><td>about 10</td>" in compared["text/html"]
    assert "Is a < b?" in compared["text/plain"]
