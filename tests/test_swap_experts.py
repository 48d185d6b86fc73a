"""Keys of one expert, values of another: the benchmark, and what lesson 11 tells of its file."""

import json
from pathlib import Path

import nbformat
import pytest

from benchmarks import swap_experts
from benchmarks.report_more import swapped_halves

ROOT = Path(__file__).parents[1]
STORED = json.loads(swap_experts.OUTPUT.read_text(encoding="utf-8"))
EXPERTS = ("commands", "telegrams")


def runs_of(keys, values):
    return [run for run in STORED["runs"] if (run["keys"], run["values"]) == (keys, values)]


def answers(run):
    return [text for expert in EXPERTS for text in run[f"asked for {expert}"]["answers"]]


def test_the_command_as_documented_makes_the_stored_file(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(swap_experts, "one_seed", lambda *given: seen.append(given) or [])
    swap_experts.main(["--output", str(tmp_path / "swap.json")])
    assert [seed for seed, _ in seen] == list(dict.fromkeys(run["seed"] for run in STORED["runs"]))
    options = seen[0][1]
    training = STORED["runs"][0]["training"]
    assert (options.steps, options.batch_size) == (training["steps"], training["batch_size"])
    about = STORED["conditions"]
    assert (options.rows, options.init_std) == (about["rows"], about["init_std"])
    assert options.model is None


def test_a_tiny_run_is_kept_and_reported(tmp_path, small_llama_folder):
    path = tmp_path / "swap.json"
    options = ["--steps", "6", "--batch-size", "2", "--rows", "2", "--seeds", "0"]
    swap_experts.main([*options, "--model", str(small_llama_folder), "--output", str(path)])
    stored = json.loads(path.read_text(encoding="utf-8"))
    mixes = [(run["keys"], run["values"]) for run in stored["runs"]]
    assert mixes == [(keys, values) for keys in EXPERTS for values in EXPERTS]
    losses = [[run[f"asked for {expert}"]["loss"] for expert in EXPERTS] for run in stored["runs"]]
    assert losses[0] != losses[1] and losses[2] != losses[3]  # other values
    for run in stored["runs"]:
        asked = run["asked for telegrams"]
        assert len(asked["answers"]) == len(asked["right"]) == 2
    table = [line for line in swapped_halves(stored) if line.startswith("| ")]
    assert len(table) == 1 + len(mixes)


def test_lesson_11_shows_the_numbers_of_the_file():
    notebook = nbformat.read(ROOT / "notebooks/11_finetune_on_a_gpu.ipynb", as_version=4)
    [cell] = [c for c in notebook.cells if c.cell_type == "code" and "swap_experts" in c.source]
    (output,) = cell.outputs
    rows = [line.split() for line in output.text.splitlines()[1:]]
    for keys in EXPERTS:
        for values in EXPERTS:
            runs = runs_of(keys, values)
            assert len(runs) == 3
            expected = [keys, values]
            for mark in ("{", "STOP"):
                counts = [len([1 for text in answers(run) if mark in text]) for run in runs]
                expected += [f"{n / len(answers(runs[0])):.0%}" for n in counts]
            expected += [f"{run[f'asked for {values}']['loss']:.2f}" for run in runs]
            assert expected in rows
    mixed = runs_of(*EXPERTS) + runs_of(*EXPERTS[::-1])
    right = sum(
        run[f"asked for {expert}"]["right"].count(True) for run in mixed for expert in EXPERTS
    )
    asked = sum(len(answers(run)) for run in mixed)
    assert output.text.splitlines()[-1].endswith(f": {right} of {asked}")


@pytest.mark.parametrize(
    ("keys", "values", "its_mark"), [(*EXPERTS, "{"), (*EXPERTS[::-1], "STOP")]
)
def test_as_lesson_11_says_no_answer_of_a_mix_has_the_mark_of_the_keys_expert(
    keys, values, its_mark
):
    for run in runs_of(keys, values):
        assert not any(its_mark in text for text in answers(run))
    for run in runs_of(keys, keys):
        assert any(its_mark in text for text in answers(run))


@pytest.mark.parametrize("expert", EXPERTS)
def test_as_lesson_11_says_other_keys_cost_much(expert):
    (other,) = set(EXPERTS) - {expert}
    for whole, half in zip(runs_of(expert, expert), runs_of(other, expert), strict=True):
        asked = f"asked for {expert}"
        assert half[asked]["loss"] > whole[asked]["loss"] + 0.5
        assert half[asked]["right"].count(True) <= 1 < whole[asked]["right"].count(True)
