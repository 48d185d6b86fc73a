"""The speed benchmarks on a tiny model: they compare the same thing, and keep what they find."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import (
    decode,
    measure,
    mixed_adapters,
    paper_run,
    savings,
    time_to_95,
    train_step,
    trials,
)
from benchmarks.methods import BASE, FULL, LORA, OURS, PEFTS, SHAPES, Base, prepare, step_flops
from llama_adapter_edu.adapters.manage import adapter_prompts
from llama_adapter_edu.method.gated_prompts import attend_to_heads

TINY = ["--shape", "tiny", "--cpu", "--rounds", "2"]


def records(path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8"))


def test_all_methods_start_from_the_same_loss_and_are_timed(tmp_path, capsys):
    path = tmp_path / "train_step.json"
    options = [*TINY, "--batch-sizes", "2", "--lengths", "9", "--output", str(path)]
    assert train_step.main([*options, "--methods", OURS, PEFTS, LORA, BASE, FULL]) == 0
    found = records(path)
    assert [record["method"] for record in found] == [OURS, PEFTS, LORA, BASE, FULL]
    assert {record["first_loss"] for record in found} == {found[0]["first_loss"]}
    for record in found:
        assert 0 < record["lowest_ms"] <= record["median_ms"] <= record["highest_ms"]
        assert record["torch"] == torch.__version__
    assert "median_ms" in capsys.readouterr().out


def test_one_batch_changes_the_weights_of_no_other_method():
    base = Base("tiny", torch.device("cpu"), torch.float32)
    before = {name: weight.clone() for name, weight in base.weights.items()}
    model = prepare(OURS, base.model(), 4, 2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(1)
    assert all(torch.equal(base.weights[name], weight) for name, weight in before.items())


def test_the_floor_counts_each_weight_once_forward_and_once_or_twice_backward():
    config = SHAPES["llama-7b"]
    weights = 32 * (4 * 4096**2 + 3 * 4096 * 11008) + 4096 * 32000
    assert step_flops(config, 10, 10, lowest_layer=0) == 2 * 2 * weights * 10
    assert step_flops(config, 10, 10, lowest_layer=0, full=True) == 3 * 2 * weights * 10
    assert step_flops(config, 10, 0, lowest_layer=32) == 2 * (weights - 4096 * 32000) * 10


def test_decoding_is_timed_with_every_kind_of_adapter(tmp_path):
    path = tmp_path / "decode.json"
    decode.main([*TINY, "--new-tokens", "3", "--output", str(path)])
    *answers, swap = records(path)
    assert [record["method"] for record in answers] == list(decode.METHODS)
    assert all(record["tokens_per_second"] > 0 for record in answers)
    assert swap["way"] == "set_adapter"


def test_the_papers_run_is_extrapolated_from_what_was_measured(tmp_path):
    path = tmp_path / "paper_run.json"
    options = ["--shape", "tiny", "--cpu", "--eager", "--seconds", "0.1", "--batch-size", "4"]
    paper_run.main([*options, "--output", str(path)])
    [record] = records(path)
    hours = 52_002 * 5 * record["measured_seconds"] / record["rows"] / 3600
    assert record["extrapolated_hours_of_the_papers_run"] == pytest.approx(
        hours, abs=0.006, rel=0.02
    )
    assert record["measured_seconds"] >= 0.1


def test_a_new_measurement_replaces_the_old_one_of_the_same_setting(tmp_path):
    path = tmp_path / "results.json"
    measure.keep(path, [{"method": "a", "batch": "1", "median_ms": 1.0}])
    measure.keep(path, [{"method": "b", "batch": "1", "median_ms": 2.0}])
    measure.keep(path, [{"method": "a", "batch": "1", "median_ms": 3.0}])
    assert [(r["method"], r["median_ms"]) for r in records(path)] == [("b", 2.0), ("a", 3.0)]


@pytest.mark.parametrize("name", savings.SAVINGS)
def test_a_saving_changes_no_loss(name):
    bench = savings.Bench("tiny", torch.device("cpu"))
    saved, plain = (work().item() for work in savings.SAVINGS[name](bench))
    assert saved == pytest.approx(plain, rel=1e-5)


def test_what_changes_the_loss_is_no_saving(monkeypatch):
    losses = [torch.tensor(2.0), torch.tensor(2.5)]
    wrong = {"wrong": lambda bench: [lambda loss=loss: loss for loss in losses]}
    monkeypatch.setattr(savings, "SAVINGS", wrong)
    bench = savings.Bench("tiny", torch.device("cpu"))
    with pytest.raises(ValueError, match=r"wrong: loss 2\.0 with it, 2\.5"):
        savings.measured("wrong", bench, "tiny", rounds=1)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux only")
def test_the_highest_memory_is_found_even_if_it_is_free_again():
    peak = measure.peak_mib(lambda: torch.ones(2**26).sum(), torch.device("cpu"))
    assert 250 < peak < 300


def test_trials_compute_the_same_and_are_timed(tmp_path):
    query, key, value = torch.randn(2, 6, 5, 8), torch.randn(6, 3, 8), torch.randn(6, 3, 8)
    expected = attend_to_heads(query, key, value, scale=0.3)
    torch.testing.assert_close(trials.matrix_products(query, key, value, scale=0.3), expected)
    path = tmp_path / "trials.json"
    options = ["--shapes", "tiny", "--cpu", "--rounds", "2", "--new-tokens", "2"]
    trials.main([*options, "--output", str(path)])
    assert {record["way"] for record in records(path)} == {"eager", "generate"}
    assert {record["trial"] for record in records(path)} >= {*trials.TRIALS, trials.LIMIT, BASE}


def test_prompts_in_the_lowest_layer_alone():
    model = prepare(OURS, Base("tiny", torch.device("cpu"), torch.float32).model(), 4, 2)
    trials.lowest_layer_alone(model)
    assert list(adapter_prompts(model, "default")) == [1]


@pytest.mark.parametrize(("goal", "looked_at"), [(0.0, 1), (1.0, 2)])
def test_the_time_to_a_goal_ends_with_the_step_that_reaches_it(
    tmp_path, monkeypatch, small_llama_folder, goal, looked_at
):
    monkeypatch.setattr(time_to_95, "GOAL", goal)
    path = tmp_path / "time_to_95.json"
    settings = ["--steps", "2", "--batch-size", "1", "--test-rows", "1", "--every", "1"]
    settings += ["--model", str(small_llama_folder), "--adapter-layers", "2"]
    time_to_95.main([*settings, "--output", str(path)])
    [record] = records(path)
    assert [step for step, _, _ in record["shares"]] == [1, 2][:looked_at]
    seconds = [second for _, second, _ in record["shares"]]
    assert 0 < seconds[0] <= seconds[-1] <= record["training_seconds"]
    assert record.get("goal_step") == (1 if looked_at == 1 else None)


def test_a_mixed_batch_gives_the_same_tokens_as_its_rows_one_by_one(tmp_path):
    path = tmp_path / "mixed.json"
    options = ["--shape", "tiny", "--new-tokens", "3", "--rounds", "1", "--output", str(path)]
    assert mixed_adapters.main(options) == 0
    assert [record["way"] for record in records(path)][:2] == ["mixed", "one by one"]
    assert all(record["same_tokens_mixed_and_one_by_one"] for record in records(path))
