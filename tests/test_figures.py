"""The figures that move: the HTML they are, and the numbers they hold."""

import base64
import json
import re

import matplotlib.pyplot as plt
import pytest
import torch
from gates import open_gates

from benchmarks import gate_dial as bench
from benchmarks import swap_experts
from llama_adapter_edu import (
    AdaptionPromptConfig,
    add_adaption_prompts,
    disable_adapter,
    gate_openings,
    gated_prompt_attention,
    load_llama,
    prompt_weights,
)
from llama_adapter_edu.adapters.manage import adapter_prompts
from llama_adapter_edu.course import figures
from llama_adapter_edu.course.figures.page import SIZE, Page
from llama_adapter_edu.course.figures.stored_dial import stored_stops
from llama_adapter_edu.course.figures.way import way_of_token
from llama_adapter_edu.method.gated_prompts import attend_to_heads


def logits(model, tokenizer):
    return model(**tokenizer("The lights of the office", return_tensors="pt")).logits.detach()


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


@pytest.fixture
def looked_at(small_adapted):
    """The small model, and one row of token ids."""
    model, tokenizer = small_adapted
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


def test_a_mix_has_the_keys_of_one_expert_and_the_values_and_gates_of_the_other(small_adapted):
    model, _ = small_adapted
    settings = AdaptionPromptConfig(adapter_len=4, adapter_layers=2)
    add_adaption_prompts(model, settings, adapter_name="other")
    open_gates(model, "other")
    add_adaption_prompts(model, settings, adapter_name=swap_experts.MIXED)
    swap_experts.mix(model, "default", "other")
    attention = model.model.layers[1].self_attn
    first, other = (attention.adaption_prompts[name] for name in ("default", "other"))
    query = torch.randn(2, 6, 3, 4)

    def projected(prompts, projection):
        return projection(prompts).reshape(len(prompts), 2, 4).transpose(0, 1)

    key = projected(first.prompts, attention.k_proj)
    value = projected(other.prompts, attention.v_proj)
    expected = gated_prompt_attention(query, key, value, other.gate)
    mixed = attention.adaption_prompts[swap_experts.MIXED]
    pair = (projected(mixed.prompts, p) for p in (attention.k_proj, attention.v_proj))
    found = attend_to_heads(query, *mixed.gated_heads(*pair, 6))
    torch.testing.assert_close(found, expected)


def test_a_mix_of_an_expert_with_itself_is_that_expert(small_adapted):
    model, tokenizer = small_adapted
    usual = logits(model, tokenizer)
    settings = AdaptionPromptConfig(adapter_len=4, adapter_layers=2)
    add_adaption_prompts(model, settings, adapter_name=swap_experts.MIXED)
    swap_experts.mix(model, "default", "default")
    torch.testing.assert_close(logits(model, tokenizer), usual)


def test_one_tokens_way_has_the_numbers_of_the_model_itself(small_adapted):
    """Of a head other than the first, against the library's own adapter in the layer."""
    model, tokenizer = small_adapted
    way = way_of_token(model, tokenizer, "Dim the lights", layer=1, head=4)
    ids = tokenizer("Dim the lights", return_tensors="pt").input_ids
    prompt = adapter_prompts(model, "default")[1]
    assert way["gate"] == pytest.approx(float(prompt.gate[4].detach()), abs=1e-4)
    assert way["opening"] == pytest.approx(float(prompt.gate_opening[4].detach()), abs=1e-4)
    seen = prompt_weights(model, ids)[1][0, 4, -1]
    assert way["prompt_weights"] == pytest.approx(seen.tolist(), abs=1e-4)
    assert sum(way["token_weights"]) == pytest.approx(1, abs=1e-3)
    numbers = zip(way["from_tokens"], way["from_prompts"], way["sum"], strict=True)
    for tokens, prompts, total in numbers:
        assert total == pytest.approx(tokens + way["opening"] * prompts, abs=1e-3)
    with torch.no_grad():
        chances = model(ids).logits[0, -1].softmax(dim=-1)
    assert way["with_adapter"][0][1] == pytest.approx(float(chances.max()), abs=1e-4)
    with disable_adapter(model), torch.no_grad():
        chances = model(ids).logits[0, -1].softmax(dim=-1)
    assert way["without"][0][1] == pytest.approx(float(chances.max()), abs=1e-4)


def test_one_tokens_way_needs_a_layer_with_prompts(small_llama_folder):
    model, tokenizer = load_llama(str(small_llama_folder))
    add_adaption_prompts(model, AdaptionPromptConfig(adapter_len=4, adapter_layers=1))
    with pytest.raises(ValueError, match="layer 0 has no prompts"):
        way_of_token(model, tokenizer, "Dim the lights", layer=0, head=0)


def test_the_stored_way_is_whole_and_needs_nothing_from_outside():
    page = figures.token_way()
    assert len(page.text) < 30_000 and outside(page.text) == []
    data = json.loads(re.search(r"tokenWay, (\{.*\})\);\n", page.text)[1])
    assert len(data["tokens"]) == len(data["token_weights"])
    assert sum(data["token_weights"]) == pytest.approx(1, abs=5e-3)
    assert sum(data["prompt_weights"]) == pytest.approx(1, abs=1e-3)
    assert data["opening"] == pytest.approx(torch.tensor(data["gate"]).tanh().item(), abs=1e-4)
