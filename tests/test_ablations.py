"""The grid of lesson 08: what it compares, its variants of the adapter, and the file it writes."""

import argparse
import json
import time
from concurrent.futures import Future
from dataclasses import asdict

import pytest
import torch
from einops import rearrange

from benchmarks import ablation_run, ablations
from benchmarks.ablation_grid import STUDIES, Cell, grid
from benchmarks.ablation_variants import apply_variant
from llama_adapter_edu import AdaptionPromptConfig, add_adaption_prompts
from llama_adapter_edu.adapters.layers.keys import layer_keys_values
from llama_adapter_edu.adapters.manage import adapter_prompts
from llama_adapter_edu.course.tasks.home_commands import generate

IDS = torch.tensor([[5, 17, 11, 42, 8, 3, 60]])


@pytest.fixture
def adapted(tiny):
    """A random Llama with 5 random prompts in its top 2 of 3 layers, in a variant."""

    def build(gate_start="zero", softmax="two", dtype="float32"):
        model = tiny()
        torch.manual_seed(1)
        add_adaption_prompts(model, AdaptionPromptConfig(adapter_len=5, adapter_layers=2))
        apply_variant(model, gate_start, softmax, dtype)
        return model

    return build


def test_each_study_compares_different_cells():
    for name, cells in STUDIES.items():
        assert len(set(cells)) == len(cells), name
        assert Cell() in cells or name in ("bfloat16", "layers_short", "quiet_start"), name


def test_the_grid_holds_each_cell_once_a_seed_and_seeds_one_after_the_other():
    jobs = grid(STUDIES, 3)
    assert len(set(jobs)) == len(jobs)
    seeds = [seed for _, seed in jobs]
    assert seeds == sorted(seeds) and set(seeds) == {0, 1, 2}
    assert {cell for cell, seed in jobs if seed == 0} == {c for s in STUDIES.values() for c in s}
    assert sum(cell.adapter_layers == 0 for cell, _ in jobs) == 1


def test_training_rows_know_few_rooms_and_depend_on_the_seed():
    rows = ablation_run.training_rows(10, 200, seed=0)
    assert len({json.loads(row["output"])["room"] for row in rows}) == 10
    assert len(rows) == 200 == len({row["instruction"] for row in rows})
    assert rows == ablation_run.training_rows(10, 200, seed=0)
    assert rows != ablation_run.training_rows(10, 200, seed=1)
    scored = {json.loads(row["output"])["room"] for row in generate("validation")}
    assert not scored & {json.loads(row["output"])["room"] for row in rows}


def test_only_a_zero_gate_behind_two_softmaxes_leaves_the_llama_alone(tiny, adapted):
    with torch.no_grad():
        bare = tiny()(IDS).logits
        for gate_start in ("zero", "random", "open"):
            for softmax in ("two", "joint"):
                logits = adapted(gate_start, softmax)(IDS).logits
                same = torch.allclose(logits, bare, atol=1e-6)
                assert same == (gate_start == "zero" and softmax == "two"), (gate_start, softmax)


def test_joint_attention_is_one_softmax_over_prompts_and_words(adapted):
    model = adapted("random", "joint")
    attention = model.model.layers[2].self_attn
    prompt = adapter_prompts(model, "default")[2]
    seen = {}
    attention.q_proj.register_forward_hook(lambda _, args, __: seen.update(hidden=args[0]))
    attention.o_proj.register_forward_hook(lambda _, args, __: seen.update(heads=args[0]))
    with torch.no_grad():
        model(IDS)
        # the same once more, head by head and query by query
        position = torch.arange(IDS.shape[1])[None]
        cos, sin = model.model.rotary_emb(seen["hidden"], position)
        from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

        q, k, v = (
            rearrange(projection(seen["hidden"]), "1 s (h d) -> 1 h s d", d=attention.head_dim)
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        q, k = apply_rotary_pos_emb(q, k, cos, sin)
        prompt_key, prompt_value = layer_keys_values(attention, prompt.prompts)
        for h in range(q.shape[1]):
            g = h // (q.shape[1] // k.shape[1])
            for s in range(IDS.shape[1]):
                keys = torch.cat([prompt_key[g], k[0, g, : s + 1]])
                weights = (keys @ q[0, h, s] * attention.head_dim**-0.5).softmax(dim=0)
                weights[:5] *= prompt.gate[h].tanh()
                expected = weights @ torch.cat([prompt_value[g], v[0, g, : s + 1]])
                got = seen["heads"][0, s].unflatten(0, (-1, attention.head_dim))[h]
                torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_joint_softmax_generates_the_same_with_and_without_cache_and_in_a_padded_batch(adapted):
    model = adapted("random", "joint")
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    alone = model.generate(IDS, **options)[:, IDS.shape[1] :]
    again = model.generate(IDS, use_cache=False, **options)[:, IDS.shape[1] :]
    assert torch.equal(alone, again)


def test_bfloat16_keeps_the_numbers_themselves_in_bfloat16(adapted):
    model = adapted(dtype="bfloat16")
    for prompt in adapter_prompts(model, "default").values():
        assert {p.dtype for p in prompt.parameters()} == {torch.bfloat16}
    loss = model(IDS, labels=IDS).loss
    loss.backward()
    assert loss.dtype == torch.float32
    assert adapter_prompts(model, "default")[2].gate.grad.dtype == torch.bfloat16


def test_an_unknown_variant_is_named(adapted):
    with pytest.raises(ValueError, match="gate_start must be one of"):
        adapted(gate_start="ajar")


class Here:
    """A pool of no processes: each job runs at once, in this one."""

    def __init__(self, workers, context, start, setup):
        start(*setup)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, work, job):
        future = Future()
        try:
            future.set_result(work(job))
        except Exception as error:
            future.set_exception(error)
        return future


@pytest.fixture
def in_this_process(monkeypatch):
    """Workers without processes, which would load torch first."""
    monkeypatch.setattr(ablations, "ProcessPoolExecutor", Here)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def run(folder, output, *more):
    arguments = ["--cpu", "--tiny", "--model", str(folder), "--output", str(output), *more]
    assert ablations.main(arguments) == 0
    return json.loads(output.read_text())


def test_a_tiny_grid_is_trained_scored_and_stored_by_another_process(small_llama_folder, tmp_path):
    stored = run(small_llama_folder, tmp_path / "grid.json")
    assert stored["device"].startswith("CPU") and stored["torch"] == torch.__version__
    settings = [run["settings"] for run in stored["runs"]]
    assert sorted(map(str, settings)) == sorted(map(str, stored["studies"]["layers"]))
    for result in stored["runs"]:
        assert 0 <= result["exact_match"] <= 1 and result["validation_loss"] > 0


def test_a_later_call_does_what_is_missing(small_llama_folder, tmp_path, in_this_process):
    nothing = run(small_llama_folder, tmp_path / "grid.json", "--budget-seconds", "0")
    assert nothing["runs"] == []
    stored = run(small_llama_folder, tmp_path / "grid.json")
    assert len(stored["runs"]) == 2
    assert run(small_llama_folder, tmp_path / "grid.json") == stored

    del stored["runs"][0]
    (tmp_path / "grid.json").write_text(json.dumps(stored))
    again = run(small_llama_folder, tmp_path / "grid.json")["runs"]
    assert again[0] == stored["runs"][0] and len(again) == 2


def test_runs_of_other_conditions_are_not_mixed(tmp_path, capsys):
    other = tmp_path / "grid.json"
    about = ablations.conditions(argparse.Namespace(cpu=True, workers=1, model=None, scored_rows=4))
    ablations.write_json(other, [], {}, about | {"base_dtype": "bfloat16"})
    before = other.read_text()
    with pytest.raises(SystemExit):
        ablations.main(["--cpu", "--tiny", "--output", str(other)])
    assert "base_dtype bfloat16, this call has float32" in capsys.readouterr().err
    assert other.read_text() == before


def test_a_failed_run_leaves_the_others(small_llama_folder, capsys, in_this_process):
    fast = {"steps": 1, "batch_size": 2, "rows": 4}
    too_many_layers, good = Cell(**fast, adapter_layers=3), Cell(**fast, adapter_layers=2)
    unknown = Cell(**fast, adapter_layers=2, gate_start="ajar")
    setup = str(small_llama_folder), True, 4, time.time() + 900, torch.get_num_threads()
    jobs = [(too_many_layers, 0), (unknown, 0), (good, 0)]
    runs = list(ablations.run_jobs(jobs, setup, workers=1))
    assert [run["settings"] for run in runs] == [good.changes()]
    errors = capsys.readouterr().err
    assert "adapter_layers=3, but the model has 2" in errors and "'ajar'" in errors


def test_the_stored_grid_is_the_one_that_is_described():
    stored = json.loads(ablations.OUTPUT.read_text(encoding="utf-8"))
    assert stored["defaults"] == asdict(Cell())
    cells = {name: [cell.changes() for cell in members] for name, members in STUDIES.items()}
    assert stored["studies"] == cells
    known = [cell for members in cells.values() for cell in members]
    keys = [json.dumps([run["settings"], run["seed"]]) for run in stored["runs"]]
    assert len(keys) == len(set(keys)) > 0
    for result in stored["runs"]:
        assert result["settings"] in known
        assert 0 <= result["exact_match"] <= 1


def test_all_kinds_of_cells_can_be_run_one_after_the_other(small_llama_folder):
    """In one process, as on the GPU: a run leaves the Llama as it found it."""
    threads = torch.get_num_threads()
    ablation_run.start_worker(str(small_llama_folder), True, 4, time.time() + 900, threads)
    fast = {"steps": 2, "batch_size": 2, "rows": 6, "adapter_layers": 2}
    cells = [
        Cell(**fast),
        Cell(**fast, gate_start="open", softmax="joint"),
        Cell(**fast, dtype="bfloat16", gate="per_layer", gate_activation="identity"),
        Cell(**fast, learning_rate=1e30),
        Cell(**fast),
    ]
    results = [ablation_run.run_cell((cell, 0)) for cell in cells]
    timeless = [{k: v for k, v in r.items() if "seconds" not in k} for r in results]
    assert timeless[0] == timeless[-1]
    assert timeless[0]["first_loss"] != timeless[1]["first_loss"]
    assert timeless[0]["train_loss"] != timeless[2]["train_loss"]
    assert "seconds" in results[0]
