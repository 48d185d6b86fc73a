"""The gate dial: the gates it turns, what is read then, the stops that are stored."""

import json

import pytest
import torch

from benchmarks import gate_dial as bench
from llama_adapter_edu import (
    gate_openings,
    load_llama,
    save_adapter,
)
from llama_adapter_edu.adapters.manage import adapter_prompts
from llama_adapter_edu.course import figures
from llama_adapter_edu.course.figures import live_dial
from llama_adapter_edu.course.figures.stored_dial import stored_stops
from llama_adapter_edu.course.figures.turned import read, scores, thirds, turned_gates
from llama_adapter_edu.data.evaluate import generate_answers

ROWS = [
    {"instruction": "Dim the office lights to 5%", "output": '{"room": "office"}'},
    {"instruction": "Hello", "output": "Good morning to you"},
]


def logits(model, tokenizer):
    return model(**tokenizer("The lights of the office", return_tensors="pt")).logits.detach()


def test_turned_gates_multiply_the_openings_and_leave_nothing_behind(small_adapted):
    model, tokenizer = small_adapted
    before = [prompt.gate.clone() for prompt in adapter_prompts(model, "default").values()]
    openings, usual = gate_openings(model), logits(model, tokenizer)
    factors = torch.linspace(-1, 3, 12).reshape(2, 6)
    with pytest.raises(ZeroDivisionError), turned_gates(model, factors):
        torch.testing.assert_close(gate_openings(model), openings * factors)
        assert not torch.equal(logits(model, tokenizer), usual)
        raise ZeroDivisionError
    after = [prompt.gate for prompt in adapter_prompts(model, "default").values()]
    assert all(map(torch.equal, before, after))
    assert torch.equal(logits(model, tokenizer), usual)


def test_factors_of_zero_are_the_base_and_of_one_the_adapted(small_adapted, small_llama_folder):
    model, tokenizer = small_adapted
    base, _ = load_llama(str(small_llama_folder))
    usual = logits(model, tokenizer)
    with turned_gates(model, torch.zeros(2, 6)):
        assert torch.equal(logits(model, tokenizer), logits(base, tokenizer))
    with turned_gates(model, torch.ones(2, 6)):
        torch.testing.assert_close(logits(model, tokenizer), usual)


def test_one_head_off_is_the_model_whose_gate_of_that_head_is_zero(small_adapted):
    model, tokenizer = small_adapted
    factors = torch.ones(2, 6)
    factors[1, 4] = 0
    with turned_gates(model, factors):
        turned = logits(model, tokenizer)
    with torch.no_grad():
        list(adapter_prompts(model, "default").values())[1].gate[4] = 0
    torch.testing.assert_close(logits(model, tokenizer), turned)


@pytest.mark.parametrize("shape", [(2, 5), (1, 6), (2, 1)])
def test_factors_of_another_shape_are_refused(small_adapted, shape):
    words = r"expected factors of shape \(2, 6\)"
    with pytest.raises(ValueError, match=words), turned_gates(small_adapted[0], torch.ones(shape)):
        pass


def test_a_model_without_an_adapter_has_no_gates_to_turn(small_llama_folder):
    model, _ = load_llama(str(small_llama_folder))
    with pytest.raises(ValueError, match="no active adapter"), turned_gates(model, torch.ones(0)):
        pass


def test_a_reading_is_the_models_loss_answers_and_first_tokens(small_adapted):
    model, tokenizer = small_adapted
    reading = read(model, tokenizer, ROWS, max_new_tokens=6)
    assert reading.answers == generate_answers(model, tokenizer, ROWS, max_new_tokens=6)

    losses, counts = [], []
    for row, top in zip(ROWS, reading.next_tokens, strict=True):
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": row["instruction"]}],
            tokenize=False,
            add_generation_prompt=True,
        )
        asked = tokenizer(text, add_special_tokens=False)["input_ids"]
        answer = tokenizer(row["output"] + "<|im_end|>", add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            scores = model(torch.tensor([asked + answer])).logits[0, len(asked) - 1 : -1]
        chances = scores.log_softmax(dim=-1)
        losses += [-float(chances[n, token]) for n, token in enumerate(answer[: len(chances)])]
        counts.append(len(answer))
        best = chances[0].exp().topk(5)
        assert [text for text, _ in top] == [tokenizer.decode([i]) for i in best.indices.tolist()]
        assert [chance for _, chance in top] == pytest.approx(best.values.tolist(), rel=1e-4)
    assert reading.loss == pytest.approx(sum(losses) / sum(counts), rel=1e-4)


def test_an_answer_that_every_token_leads_to_is_what_generation_gives(small_adapted):
    """Rows that are right are not generated: the answer must be the same all the same."""
    model, tokenizer = small_adapted
    [answer] = generate_answers(model, tokenizer, ROWS[:1], max_new_tokens=4)
    rows = [{**ROWS[0], "output": answer}]
    assert read(model, tokenizer, rows, max_new_tokens=4).answers == [answer]


@pytest.mark.parametrize(("n_layers", "sizes"), [(30, [10, 10, 10]), (8, [3, 3, 2]), (2, [1, 1])])
def test_thirds_are_neighbours_and_all_layers(n_layers, sizes):
    parts = thirds(n_layers)
    assert [len(part) for part in parts] == sizes
    assert [row for part in parts for row in part] == list(range(n_layers))


def measured(small_llama_folder, small_adapted, tmp_path, monkeypatch):
    """The benchmark's file for the small model, measured in two calls: the second one goes on."""
    save_adapter(small_adapted[0], tmp_path / "adapter")
    noted = dict.fromkeys(bench.TRAINING, 1)
    (tmp_path / "adapter/results.json").write_text(json.dumps(noted))
    monkeypatch.setattr(bench, "ALL", (0, 1))
    monkeypatch.setattr(bench, "THIRD", (1,))
    monkeypatch.setattr(bench, "ROWS", 1)
    path = tmp_path / "dial.json"
    where = ["--output", path, "--model", small_llama_folder, "--adapter", tmp_path / "adapter"]
    bench.main(list(map(str, where)))
    return path, list(map(str, where))


def test_the_benchmark_measures_every_stop_once_and_a_second_call_measures_none(
    small_llama_folder, small_adapted, tmp_path, monkeypatch
):
    path, arguments = measured(small_llama_folder, small_adapted, tmp_path, monkeypatch)
    content = json.loads(path.read_text(encoding="utf-8"))
    stops = content["stops"]
    assert [len(found) for found in stops.values()] == [2, 1, 1, 12]
    one = read(*small_adapted, content["rows"])
    trained = stops["all gates"][1]
    assert trained["loss"] == pytest.approx(one.loss, rel=1e-2)
    assert [content["answers"][n] for n in trained["answers"]] == one.answers
    tokens = [content["tokens"][n] for n in trained["next"][0][::2]]
    assert tokens == [token for token, _ in one.next_tokens[0]]

    factors = torch.ones(2, 6)
    factors[1, 4] = 0
    with turned_gates(small_adapted[0], factors):
        whole = read(*small_adapted, content["rows"])
    [head] = (s for s in stops["single heads"] if (s["layer"], s["head"]) == (1, 4))
    assert head["loss"] == pytest.approx(whole.loss, rel=1e-2)
    assert [content["answers"][n] for n in head["answers"]] == whole.answers

    monkeypatch.setattr(bench, "read", None)
    bench.main(arguments)
    assert json.loads(path.read_text(encoding="utf-8")) == content
    monkeypatch.setattr(bench, "ROWS", 2)
    with pytest.raises(SystemExit, match="other conditions"):
        bench.main(arguments)


def test_the_stored_stops_are_all_there_and_their_numbers_lead_somewhere():
    stored = stored_stops()
    shape = len(stored["openings"]), len(stored["openings"][0])
    assert shape == (30, 9)
    found = [
        (control, {key: stop[key] for key in ("factor", "layer", "head") if key in stop})
        for control, stops in stored["stops"].items()
        for stop in stops
    ]
    assert found == [(control, which) for control, which, _ in bench.settings(*shape)]
    for stop in (stop for stops in stored["stops"].values() for stop in stops):
        assert 0 < stop["loss"] < 30
        assert len(stop["answers"]) == len(stop["next"]) == len(stored["rows"]) == bench.ROWS
        assert max(stop["answers"]) < len(stored["answers"])
        for pairs in stop["next"]:
            chances = pairs[1::2]
            assert len(chances) == 5 and max(pairs[::2]) < len(stored["tokens"])
            assert chances == sorted(chances, reverse=True) and sum(chances) <= 1002


def test_the_stored_stops_agree_where_controls_meet():
    """Every slider at 1 is the trained adapter; closed gates are the base model, which fails."""
    stops = stored_stops()["stops"]
    trained = [s for name in list(stops)[:4] for s in stops[name] if s["factor"] == 1]
    assert len(trained) == 4 and all(stop == trained[0] for stop in trained)
    by_factor = {stop["factor"]: stop["loss"] for stop in stops["all gates"]}
    assert by_factor[-1] > by_factor[0] > 10 * by_factor[1]


def test_factors_of_the_live_dial_multiply():
    factors = live_dial.factors_of((4, 3), 2, (1, 0.5, -1), [(3, 1), (0, 0)])
    assert factors.tolist() == [[0, 2, 2], [2, 2, 2], [1, 1, 1], [-2, 0, -2]]


def test_the_live_dial_without_ipywidgets_is_one_sentence(small_adapted, monkeypatch, capsys):
    monkeypatch.setattr(live_dial, "find_spec", lambda name: None)
    assert figures.dial(*small_adapted, ROWS) is None
    assert "pip install ipywidgets" in capsys.readouterr().out


def test_the_live_dial_needs_an_adapter_and_rows(small_adapted, small_llama_folder):
    with pytest.raises(ValueError, match="at least one row"):
        figures.dial(*small_adapted, [])
    with pytest.raises(ValueError, match="active adapter"):
        figures.dial(*load_llama(str(small_llama_folder)), ROWS)


def test_the_live_dial_runs_the_model_at_each_turn_and_gives_the_gates_back(small_adapted):
    pytest.importorskip("ipywidgets")
    model, tokenizer = small_adapted
    before = gate_openings(model)
    *sliders, off, result = figures.dial(model, tokenizer, ROWS, max_new_tokens=2).children
    seen = [result.value]
    for control, value in ((sliders[0], 0.5), (sliders[2], -1.0), (off, [(1, 2)])):
        control.value = value
        seen.append(result.value)
    assert len(set(seen)) == 4
    assert torch.equal(gate_openings(model), before)
    factors = live_dial.factors_of((2, 6), 0.5, (1, -1), [(1, 2)])
    with turned_gates(model, factors):
        expected = read(model, tokenizer, ROWS, max_new_tokens=2)
    assert live_dial.text_of(expected, ROWS) == result.value


def test_a_reading_from_a_layer_on_is_the_whole_reading(small_adapted, monkeypatch):
    model, tokenizer = small_adapted
    seen = []
    monkeypatch.setattr(bench, "scores", lambda *what: seen.append(scores(*what)) or seen[-1])
    states = bench.states_before(model, tokenizer, ROWS)
    factors = torch.ones(2, 6)
    factors[1, 2] = -1
    with turned_gates(model, factors):
        whole = read(model, tokenizer, ROWS, max_new_tokens=2)
        for state in (states[1], 0 * states[1]):
            bench.read_from(1, state, model, tokenizer, ROWS)
    _, part, wrong = (loss for loss, *_ in seen)
    assert part == pytest.approx(whole.loss, rel=1e-6)
    assert wrong != pytest.approx(whole.loss, rel=1e-3)
    assert len(model.model.layers) == 2
    assert read(model, tokenizer, ROWS, max_new_tokens=2).loss == pytest.approx(
        seen[0][0], rel=1e-6
    )
