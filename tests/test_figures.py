"""The figures that move: the gates they turn, the data they hold, the HTML they are."""

import base64
import json
import re

import matplotlib.pyplot as plt
import pytest
import torch
from gates import open_gates

from benchmarks import gate_dial as bench
from llama_adapter_edu import (
    AdaptionPromptConfig,
    add_adaption_prompts,
    gate_openings,
    load_llama,
    prompt_weights,
    save_adapter,
)
from llama_adapter_edu.adapters.manage import adapter_prompts
from llama_adapter_edu.course import figures
from llama_adapter_edu.course.figures import live_dial
from llama_adapter_edu.course.figures.gate_dial import stored_stops
from llama_adapter_edu.course.figures.page import SIZE, Page
from llama_adapter_edu.course.figures.turned import read, scores, thirds, turned_gates
from llama_adapter_edu.data.evaluate import generate_answers

ROWS = [
    {"instruction": "Dim the office lights to 5%", "output": '{"room": "office"}'},
    {"instruction": "Hello", "output": "Good morning to you"},
]


@pytest.fixture
def small(small_llama_folder):
    """(model, tokenizer): two random layers, six heads, gates open."""
    model, tokenizer = load_llama(str(small_llama_folder))
    torch.manual_seed(0)
    add_adaption_prompts(model, AdaptionPromptConfig(adapter_len=4, adapter_layers=2))
    open_gates(model)
    return model, tokenizer


def logits(model, tokenizer):
    return model(**tokenizer("The lights of the office", return_tensors="pt")).logits.detach()


def test_turned_gates_multiply_the_openings_and_leave_nothing_behind(small):
    model, tokenizer = small
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


def test_factors_of_zero_are_the_base_model_and_of_one_the_adapted(small, small_llama_folder):
    model, tokenizer = small
    base, _ = load_llama(str(small_llama_folder))
    usual = logits(model, tokenizer)
    with turned_gates(model, torch.zeros(2, 6)):
        assert torch.equal(logits(model, tokenizer), logits(base, tokenizer))
    with turned_gates(model, torch.ones(2, 6)):
        torch.testing.assert_close(logits(model, tokenizer), usual)


def test_one_head_off_is_the_model_whose_gate_of_that_head_is_zero(small):
    model, tokenizer = small
    factors = torch.ones(2, 6)
    factors[1, 4] = 0
    with turned_gates(model, factors):
        turned = logits(model, tokenizer)
    with torch.no_grad():
        list(adapter_prompts(model, "default").values())[1].gate[4] = 0
    torch.testing.assert_close(logits(model, tokenizer), turned)


@pytest.mark.parametrize("shape", [(2, 5), (1, 6), (2, 1)])
def test_factors_of_another_shape_are_refused(small, shape):
    words = r"expected factors of shape \(2, 6\)"
    with pytest.raises(ValueError, match=words), turned_gates(small[0], torch.ones(shape)):
        pass


def test_a_model_without_an_adapter_has_no_gates_to_turn(small_llama_folder):
    model, _ = load_llama(str(small_llama_folder))
    with pytest.raises(ValueError, match="no active adapter"), turned_gates(model, torch.ones(0)):
        pass


def test_a_reading_is_the_models_loss_answers_and_first_tokens(small):
    model, tokenizer = small
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


def test_an_answer_that_every_token_leads_to_is_what_generation_gives(small):
    """Rows that are right are not generated: the answer must be the same all the same."""
    model, tokenizer = small
    [answer] = generate_answers(model, tokenizer, ROWS[:1], max_new_tokens=4)
    rows = [{**ROWS[0], "output": answer}]
    assert read(model, tokenizer, rows, max_new_tokens=4).answers == [answer]


@pytest.mark.parametrize(("n_layers", "sizes"), [(30, [10, 10, 10]), (8, [3, 3, 2]), (2, [1, 1])])
def test_thirds_are_neighbours_and_all_layers(n_layers, sizes):
    parts = thirds(n_layers)
    assert [len(part) for part in parts] == sizes
    assert [row for part in parts for row in part] == list(range(n_layers))


def measured(small_llama_folder, small, tmp_path, monkeypatch):
    """The benchmark's file for the small model, measured in two calls: the second one goes on."""
    save_adapter(small[0], tmp_path / "adapter")
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
    small_llama_folder, small, tmp_path, monkeypatch
):
    path, arguments = measured(small_llama_folder, small, tmp_path, monkeypatch)
    content = json.loads(path.read_text(encoding="utf-8"))
    stops = content["stops"]
    assert [len(found) for found in stops.values()] == [2, 1, 1, 12]
    one = read(*small, content["rows"])
    trained = stops["all gates"][1]
    assert trained["loss"] == pytest.approx(one.loss, rel=1e-2)
    assert [content["answers"][n] for n in trained["answers"]] == one.answers
    tokens = [content["tokens"][n] for n in trained["next"][0][::2]]
    assert tokens == [token for token, _ in one.next_tokens[0]]

    factors = torch.ones(2, 6)
    factors[1, 4] = 0
    with turned_gates(small[0], factors):
        whole = read(*small, content["rows"])
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


def outside(text: str) -> list[str]:
    """What a piece of HTML would fetch, or where it would lead."""
    return re.findall(r"https?://[^\s\"')]+|\b(?:src|href)\s*=|@import|\bimport\b|fetch\(", text)


def test_the_dial_is_one_small_piece_that_needs_nothing_from_outside():
    text = figures.gate_dial()._repr_html_()
    assert len(text.encode()) <= SIZE == 200_000
    assert outside(text) == []
    assert text.count("<script>") == text.count("</script>") == 1


def test_a_page_is_the_same_each_time_and_text_in_its_data_cannot_end_the_script():
    data = {"text": "</script><b>&'\"\u2028"}
    text = Page("gateDial", data).text
    assert text == Page("gateDial", data).text != Page("gateDial", {}).text
    assert text.count("</script>") == 1
    assert json.loads(re.search(r"gateDial, (\{.*\})\);", text)[1]) == data


def test_without_scripts_a_page_says_why_nothing_moves():
    page = Page("gateDial", {}, "Look at the <picture>.")
    visible = re.sub(r"<script>.*</script>|<[^>]*>", "", page.text, flags=re.S)
    assert "runs none" in visible and "Look at the &lt;picture&gt;." in visible
    assert repr(page) == page.instead


def test_a_page_refuses_what_a_notebook_should_not_carry():
    with pytest.raises(ValueError, match="more than 200,000"):
        Page("gateDial", ["x" * SIZE])


def test_the_picture_beside_the_dial_shows_the_stops():
    fig, (loss, right) = plt.subplots(2)
    figures.plot_dial(loss, right)
    stops = stored_stops()["stops"]["all gates"]
    assert list(loss.lines[0].get_xdata()) == [stop["factor"] for stop in stops]
    assert list(loss.lines[0].get_ydata()) == [stop["loss"] for stop in stops]
    at_one = [stop["factor"] for stop in stops].index(1)
    assert right.lines[0].get_ydata()[at_one] == bench.ROWS
    assert max(right.lines[0].get_ydata()) == bench.ROWS
    plt.close(fig)


def test_factors_of_the_live_dial_multiply():
    factors = live_dial.factors_of((4, 3), 2, (1, 0.5, -1), [(3, 1), (0, 0)])
    assert factors.tolist() == [[0, 2, 2], [2, 2, 2], [1, 1, 1], [-2, 0, -2]]


def test_the_live_dial_without_ipywidgets_is_one_sentence(small, monkeypatch, capsys):
    monkeypatch.setattr(live_dial, "find_spec", lambda name: None)
    assert figures.dial(*small, ROWS) is None
    assert "pip install ipywidgets" in capsys.readouterr().out


def test_the_live_dial_needs_an_adapter_and_rows(small, small_llama_folder):
    with pytest.raises(ValueError, match="at least one row"):
        figures.dial(*small, [])
    with pytest.raises(ValueError, match="active adapter"):
        figures.dial(*load_llama(str(small_llama_folder)), ROWS)


def test_the_live_dial_runs_the_model_at_each_turn_and_gives_the_gates_back(small):
    pytest.importorskip("ipywidgets")
    model, tokenizer = small
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


def test_a_reading_from_a_layer_on_is_the_whole_reading(small, monkeypatch):
    model, tokenizer = small
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


@pytest.fixture
def looked_at(small):
    """The small model, and one row of token ids."""
    model, tokenizer = small
    return model, tokenizer, tokenizer("Dim the lights", return_tensors="pt").input_ids


def test_a_read_is_the_opening_times_the_weight(looked_at):
    model, _, ids = looked_at
    layers, reads = figures.prompt_reads(model, ids)
    weights, openings = prompt_weights(model, ids), gate_openings(model)
    assert layers == list(weights) == [0, 1]
    for row, layer in enumerate(layers):
        for head in range(6):
            expected = openings[row, head] * weights[layer][0, head]
            torch.testing.assert_close(reads[row, head], expected)


def test_the_microscope_holds_every_weight_of_every_token(looked_at):
    model, tokenizer, ids = looked_at
    page = figures.microscope(model, tokenizer, ids)
    data = json.loads(re.search(r"microscope, (\{.*\})\);\n", page.text)[1])
    assert data["tokens"] == [tokenizer.decode([token]) for token in ids[0].tolist()]
    stored = torch.tensor(list(base64.b64decode(data["weights"]))) / 255
    stored = stored.reshape(ids.shape[1], 2, 6, data["prompts"])
    for row, weights in enumerate(prompt_weights(model, ids).values()):
        expected = weights[0].permute(1, 0, 2)
        torch.testing.assert_close(stored[:, row], expected, atol=0.5 / 255 + 1e-6, rtol=0)
    openings = torch.tensor(data["openings"])
    torch.testing.assert_close(openings, gate_openings(model), atol=1e-4, rtol=0)
    assert outside(page.text) == []


@pytest.mark.parametrize("shape", [(3,), (2, 3)])
def test_the_microscope_looks_at_one_row(looked_at, shape):
    model, tokenizer, _ = looked_at
    with pytest.raises(ValueError, match=r"one row of token ids \(1 s\)"):
        figures.microscope(model, tokenizer, torch.ones(shape, dtype=torch.long))


def test_one_gate_a_layer_serves_all_heads_in_the_microscope(small_llama_folder):
    model, tokenizer = load_llama(str(small_llama_folder))
    settings = AdaptionPromptConfig(adapter_len=4, adapter_layers=1, gate="per_layer")
    add_adaption_prompts(model, settings)
    open_gates(model)
    ids = tokenizer("Dim the lights", return_tensors="pt").input_ids
    layers, reads = figures.prompt_reads(model, ids)
    assert layers == [1] and reads.shape == (1, 6, ids.shape[1], 4)
    expected = gate_openings(model)[0, 0] * prompt_weights(model, ids)[1][0]
    torch.testing.assert_close(reads[0], expected)


def test_the_still_picture_sums_the_sizes_of_all_heads(looked_at):
    model, _, ids = looked_at
    _, ax = plt.subplots()
    figures.plot_reads(ax, model, ids, token=1)
    _, reads = figures.prompt_reads(model, ids)
    drawn = torch.tensor(ax.images[0].get_array().tolist()).float()
    torch.testing.assert_close(drawn, sum(abs(reads[:, head, 1]) for head in range(6)))
    plt.close("all")
