"""Adapters on the hub: the real client, against a hub on this computer."""

import json
import re
from pathlib import Path

import pytest
import torch
from fake_hub import COMMIT, fake_hub

import llama_adapter_edu
from llama_adapter_edu import (
    AdaptionPromptConfig,
    add_adaption_prompts,
    add_cartridge,
    count_parameters,
    from_pretrained,
    load_adapter,
    load_llama,
    push_to_hub,
    save_adapter,
)
from llama_adapter_edu.adapters.manage import adapter_configs, adapter_prompts
from llama_adapter_edu.files import share as hub
from llama_adapter_edu.files.download import base_name, download_adapter
from llama_adapter_edu.files.save_load import CONFIG_FILE, AdapterFileError
from llama_adapter_edu.hub_names import check_hub_id, local_path
from llama_adapter_edu.vision.attach import add_vision
from llama_adapter_edu.vision.encoders import DigitEncoder

CONFIG = AdaptionPromptConfig(4, 2, gate="per_layer", init_std=0.5)
BASE = "someone/tiny-llama"


@pytest.fixture
def server(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    monkeypatch.chdir(tmp_path)
    with fake_hub(monkeypatch) as server:
        yield server


@pytest.fixture
def adapted(tiny):
    model = add_adaption_prompts(tiny(), CONFIG)
    for prompt in adapter_prompts(model, "default").values():
        torch.nn.init.normal_(prompt.gate)
    return model


def logits(model):
    with torch.no_grad():
        return model(input_ids=torch.tensor([[5, 6, 7, 8]])).logits


@pytest.mark.parametrize("kind", ["v2", "v2 alone", "cartridge"])
def test_other_kinds_of_adapters_and_their_cards(server, tiny, kind):
    if kind == "cartridge":
        model = add_cartridge(tiny(), torch.tensor([[5, 6, 7]]))
        said, numbers = (
            "A cartridge .*trained keys and\nvalues of 3 tokens in all 3",
            3 * 2 * 3 * 16,
        )
    else:
        length = 4 if kind == "v2" else 0
        config = AdaptionPromptConfig(length, 2, bias_scale=True, norms=True)
        model = add_adaption_prompts(tiny(), config)
        said, numbers = "A LLaMA-Adapter V2 .*bias and scale of all", count_parameters(model)[0]
    push_to_hub(model, "me/my-adapter", data="x", base_model=BASE)
    card = server.repositories["me/my-adapter"]["README.md"].decode()
    assert re.search(said, card, re.DOTALL) and f"It holds {numbers:,} numbers" in card
    assert torch.equal(logits(load_adapter(tiny(), "me/my-adapter")), logits(model))


@pytest.mark.parametrize("format", ["llama_adapter_edu", "peft", "litgpt"])
def test_what_is_pushed_loads_again_by_its_id(server, adapted, tiny, format):
    url = push_to_hub(adapted, "me/my-adapter", data="x", base_model=BASE, format=format)
    assert url == f"https://huggingface.co/me/my-adapter/commit/{COMMIT}"
    again = load_adapter(tiny(), "me/my-adapter", "there")
    assert list(adapter_configs(again)) == ["there"]
    torch.testing.assert_close(logits(again), logits(adapted), rtol=0, atol=1e-6)
    asked = len(server.asked)
    folder = download_adapter("me/my-adapter", revision=COMMIT)
    assert not [path for path in server.asked[asked:] if "resolve" in path]  # it is in the cache
    assert "README.md" not in {path.name for path in folder.iterdir()}


def test_an_adapter_that_sees_is_pushed_and_loaded_with_its_encoder(
    server, adapted, tiny, monkeypatch
):
    images = torch.rand(1, 8, 8)
    seeing = add_vision(adapted, DigitEncoder().eval())
    push_to_hub(seeing, "me/my-adapter", data="x", base_model=BASE)
    with torch.no_grad():
        expected = seeing(torch.tensor([[5, 6]]), images=images).logits
    monkeypatch.setattr(hub, "load_llama", lambda _: (tiny(), None))
    again, _ = from_pretrained("me/my-adapter", encoder=DigitEncoder().eval())
    with torch.no_grad():
        torch.testing.assert_close(again(torch.tensor([[5, 6]]), images=images).logits, expected)
    with pytest.raises(ValueError, match="sees pictures"):
        from_pretrained("me/my-adapter")


def test_the_card_says_base_settings_and_data(server, adapted):
    push_to_hub(
        adapted,
        "me/my-adapter",
        data="tatsu-lab/alpaca",
        base_model=BASE,
        license="apache-2.0",
        private=True,
    )
    card = server.repositories["me/my-adapter"]["README.md"].decode()
    assert server.private["me/my-adapter"] is True
    from huggingface_hub import ModelCard

    head = ModelCard(card).data.to_dict()
    assert head["base_model"] == BASE
    assert head["datasets"] == ["tatsu-lab/alpaca"]
    assert (head["license"], head["library_name"]) == ("apache-2.0", "llama-adapter-edu")
    for text in (
        f"[{BASE}](https://huggingface.co/{BASE})",
        "| `adapter_len` | 4 |",
        "386 numbers",
    ):
        assert text in card


def test_a_sentence_says_the_data_as_well_and_ends_no_header(adapted):
    from huggingface_hub import ModelCard

    weights = hub.read_out(adapted, "default")
    sentence = "200 commands\n---\nlicense: mit"
    card = hub.model_card(weights, "me/a", BASE, sentence, "peft", license="x\n---\n# y")
    head = ModelCard(card).data.to_dict()
    assert head["base_model"] == BASE and head["library_name"] == "peft"
    assert "datasets" not in head and head["license"] != "mit"
    assert "* Data: 200 commands" in card


def test_only_an_adapters_files_are_fetched(server, adapted, tiny):
    push_to_hub(adapted, "me/my-adapter", data="x", base_model=BASE)
    server.repositories["me/my-adapter"] |= {
        "modeling_evil.py": b"raise SystemExit",
        "../outside.txt": b"x",
        "sub/adapter_config.json": b"{}",
    }
    load_adapter(tiny(), "me/my-adapter")
    fetched = {path.split("/")[-1] for path in server.asked if "resolve" in path}
    assert fetched == {"adapter_config.json", "adapter_model.safetensors"}


def test_from_pretrained_brings_the_base_model_too(fresh_llama, tmp_path):
    model, tokenizer = fresh_llama
    add_adaption_prompts(model, CONFIG)
    for prompt in adapter_prompts(model, "default").values():
        torch.nn.init.normal_(prompt.gate)
    for format, name in [("llama_adapter_edu", "base_model"), ("peft", "base_model_name_or_path")]:
        save_adapter(model, tmp_path / format, format=format)
        settings = json.loads((tmp_path / format / CONFIG_FILE).read_text())
        # The repository with the course's GGUF file opens in no other library.
        assert settings[name] == "HuggingFaceTB/SmolLM2-135M-Instruct"
        again, its_tokenizer = from_pretrained(tmp_path / format, "home", dtype=torch.float32)
        assert list(adapter_configs(again)) == ["home"]
        torch.testing.assert_close(logits(again), logits(model), rtol=0, atol=1e-4)
        assert its_tokenizer("Hello").input_ids == tokenizer("Hello").input_ids


def test_from_pretrained_names_broken_weights(adapted, tmp_path):
    save_adapter(adapted, tmp_path, base_model=BASE)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"broken")
    with pytest.raises(AdapterFileError, match="corrupt or was cut short"):
        from_pretrained(tmp_path)


def test_an_adapter_of_the_original_does_not_get_the_courses_weights(server, adapted, tmp_path):
    """The course's Llama has the same weights in 4 bits: nearly right answers, and wrong ones."""
    save_adapter(adapted, tmp_path, base_model="HuggingFaceTB/SmolLM2-135M-Instruct")
    with pytest.raises(FileNotFoundError, match="no model 'HuggingFaceTB/SmolLM2-135M-Instruct'"):
        from_pretrained(tmp_path)
    assert any("HuggingFaceTB/SmolLM2-135M-Instruct" in path for path in server.asked)


@pytest.mark.parametrize("format", ["llama_adapter_edu", "peft", "litgpt", "lit-llama"])
def test_the_cards_example_runs(server, tiny, monkeypatch, format):
    model = add_adaption_prompts(tiny(num_key_value_heads=6), CONFIG)
    for prompt in adapter_prompts(model, "default").values():
        torch.nn.init.normal_(prompt.gate)
    push_to_hub(model, "me/my-adapter", data="x", base_model=BASE, format=format)
    card = server.repositories["me/my-adapter"]["README.md"].decode()
    base = tiny(num_key_value_heads=6)
    for module in (hub, llama_adapter_edu):
        monkeypatch.setattr(module, "load_llama", {BASE: (base, None)}.__getitem__)
    found = {}
    exec(card.split("```python")[1].split("```")[0], found)
    torch.testing.assert_close(logits(found["model"]), logits(model), rtol=0, atol=1e-6)


@pytest.mark.parametrize("base", [None, "/etc", "../..", "gpt2", 7, "a/b; rm -rf"])
def test_a_base_that_is_no_hub_id_is_not_opened(adapted, tmp_path, base):
    save_adapter(adapted, tmp_path, format="peft", base_model=base)
    with pytest.raises(AdapterFileError, match="does not name its base model by a hub id"):
        from_pretrained(tmp_path)


def test_the_base_models_name_is_its_hub_id_and_never_a_path(tiny, tmp_path):
    model = tiny()
    for name, known in [(BASE, BASE), ("", None), (str(tmp_path), None), ("./x", None)]:
        model.config._name_or_path = name
        assert base_name(model) == known


@pytest.mark.parametrize(
    "name, error, text",
    [
        (
            "me/nothing-here",
            FileNotFoundError,
            "There is no adapter 'me/nothing-here' on the",
        ),
        ("private/x", FileNotFoundError, "If it is private, create a token"),
        ("gated/x", PermissionError, "gated/x is open only to those who accepted"),
        ("broken/x", ConnectionError, "The Hugging Face hub does not answer for 'broken/x'"),
        ("me/empty", FileNotFoundError, "me/empty holds no adapter"),
        ("me/a b", ValueError, "'me/a b' is neither a path here nor an id"),
    ],
)
def test_what_the_hub_refuses_is_said_and_the_model_is_as_it_was(server, tiny, name, error, text):
    server.repositories["me/empty"] = {"README.md": b"x", "pytorch_model.bin": b"x"}
    model = tiny()
    with pytest.raises(error, match=re.escape(text)):
        load_adapter(model, name)
    assert not adapter_configs(model)


def test_a_revision_that_is_not_there(server):
    server.repositories["me/a"] = {}
    with pytest.raises(FileNotFoundError, match="me/a has no such revision"):
        download_adapter("me/a", revision="v9")


def test_a_push_that_cannot_be_is_refused_before_anything_is_sent(server, adapted, tiny):
    with pytest.raises(ValueError, match="neither a path here nor an id"):
        push_to_hub(adapted, "me/a b", data="x", base_model=BASE)
    with pytest.raises(ValueError, match="which base model was this trained on"):
        push_to_hub(adapted, "me/a", data="x")
    with pytest.raises(ValueError, match="data should say what"):
        push_to_hub(adapted, "me/a", data=" ", base_model=BASE)
    per_head = add_adaption_prompts(tiny(), AdaptionPromptConfig(4, 2))
    torch.nn.init.normal_(adapter_prompts(per_head, "default")[1].gate)
    with pytest.raises(ValueError, match="PEFT has one gate a layer"):
        push_to_hub(per_head, "me/a", data="x", base_model=BASE, format="peft")
    assert not server.asked


@pytest.mark.parametrize(
    "name, error, text",
    [
        ("private/x", PermissionError, "does not let you write private/x (401)"),
        ("gated/x", PermissionError, "does not let you write gated/x (403)"),
        ("broken/x", ConnectionError, "broken/x was not uploaded"),
    ],
)
def test_a_push_that_the_hub_refuses(server, adapted, name, error, text):
    with pytest.raises(error, match=re.escape(text)):
        push_to_hub(adapted, name, data="x", base_model=BASE)


def test_without_a_network(monkeypatch, adapted, tiny, tmp_path):
    with fake_hub(monkeypatch):
        pass  # its address stays, nobody answers there
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConnectionError, match=r"hub does not answer for 'me/a'.*pass a folder"):
        load_adapter(tiny(), "me/a")
    with pytest.raises(ConnectionError, match="me/a was not uploaded"):
        push_to_hub(adapted, "me/a", data="x", base_model=BASE)


@pytest.mark.parametrize("name", ["a/b", "Org-1/my_model.v2", "x" * 47 + "/" + "y" * 48])
def test_good_ids(name):
    check_hub_id(name)
    assert local_path(name) is None


BAD_IDS = [
    *("a/b\n", "a/ b", "a//b", "-a/b", "a/b.", "a/b--c", "a/..", "a/b.git", "ä/b", "a\0/b"),
    *(f"{'x' * 60}/{'y' * 97}", "a/%2e%2e", "a/b#c", "a/b?x=1", "a@main/b", ""),
]


@pytest.mark.parametrize("name", BAD_IDS)
def test_bad_ids_are_named(name, tiny):
    with pytest.raises((ValueError, FileNotFoundError), match=r"no adapter in|Expected"):
        load_adapter(tiny(), name)
    with pytest.raises(ValueError, match=r"Expected .* 'owner/name'"):
        check_hub_id(name)


def test_a_folder_of_that_name_comes_first(adapted, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_adapter(adapted, "runs/mine")
    assert local_path("runs/mine") == Path("runs/mine")
    assert torch.equal(logits(load_adapter(tiny(), "runs/mine")), logits(adapted))


def test_load_llama_points_to_what_loads_an_adapter(server, adapted, tmp_path):
    save_adapter(adapted, tmp_path / "x")
    push_to_hub(adapted, "me/my-adapter", data="x", base_model=BASE)
    for name in (tmp_path / "x", "me/my-adapter"):
        with pytest.raises(FileNotFoundError, match=r"holds an adapter, .*from_pretrained\("):
            load_llama(name)


LOADERS = {"adapter": load_adapter, "both": lambda _, x: from_pretrained(x), "model": None}


@pytest.mark.parametrize("load", LOADERS)
@pytest.mark.parametrize("name", ["runs/my-adapter", "here/mine", "me/x.safetensors", "~/mine"])
def test_a_missing_folder_is_not_looked_up_on_the_hub(server, adapted, tiny, tmp_path, name, load):
    """Whoever owns "runs" there would supply the adapter; the hub has one of every such name."""
    push_to_hub(adapted, "me/my-adapter", data="x", base_model=BASE)
    server.repositories |= dict.fromkeys([name], server.repositories["me/my-adapter"])
    (tmp_path / "here").mkdir()
    server.asked.clear()
    load = LOADERS[load] or (lambda _, x: load_llama(x))
    with pytest.raises(FileNotFoundError, match=r"no adapter in|There is no folder") as raised:
        load(tiny(), name)
    assert not server.asked
    could_be_an_id = name in ("runs/my-adapter", "here/mine")
    assert ("It is not looked up on the Hugging Face hub" in str(raised.value)) == could_be_an_id
