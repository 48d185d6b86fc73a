"""The examples run on the course's Llama, a few steps each, and do what they say."""

import importlib.util
import json
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch
from gates import open_gates

from llama_adapter_edu import AdaptionPromptConfig, add_adaption_prompts, save_adapter
from llama_adapter_edu.course.tasks.home_commands import home_commands

EXAMPLES = Path(__file__).parents[1] / "examples"


def example(name: str):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """What `own_data.py` makes of ten commands, in two steps."""
    folder = tmp_path_factory.mktemp("examples")
    rows = [
        {"instruction": r["instruction"], "output": r["output"]} for r in home_commands("train", 10)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = ["--steps", "2", "--batch-size", "2", "--adapter-layers", "2", "--gate", "per_layer"]
    example("own_data").main(
        [str(folder / "rows.jsonl"), "--output", str(folder / "mine"), *settings]
    )
    return folder / "mine"


def test_own_rows_become_an_adapter(trained):
    config = json.loads((trained / "adapter_config.json").read_text())
    assert (config["adapter_layers"], config["gate"]) == (2, "per_layer")


def test_peft_computes_the_same(trained, tmp_path, capsys):
    assert example("to_peft").main([str(trained), str(tmp_path / "peft")]) < 1e-3
    assert json.loads((tmp_path / "peft" / "adapter_config.json").read_text())["peft_type"]
    assert "written for PEFT" in capsys.readouterr().out


def test_each_address_is_another_expert_of_one_llama(trained, fresh_llama, tmp_path):
    model, _ = fresh_llama
    torch.manual_seed(0)
    add_adaption_prompts(model, AdaptionPromptConfig(5, 5))
    open_gates(model, std=3.0)
    save_adapter(model, tmp_path / "wild")

    two_experts = example("two_experts")
    experts = two_experts.Experts([str(trained), str(tmp_path / "wild")], max_new_tokens=6)
    assert experts.names == ["base", "mine", "wild"]
    server = two_experts.make_server(experts, port=0)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()

    def ask(name: str, content: object) -> tuple[int, dict]:
        address = f"http://127.0.0.1:{server.server_port}/{name}"
        try:
            reply = urllib.request.urlopen(address, json.dumps(content).encode(), timeout=60)
        except urllib.error.HTTPError as error:
            reply = error
        with reply:
            return reply.status, json.load(reply)

    try:
        question = {"instruction": "Say yes."}
        answers = {name: ask(name, question) for name in experts.names}
        assert {status for status, _ in answers.values()} == {200}
        assert answers["base"] != answers["wild"]
        assert ask("base", question) == answers["base"]
        assert ask("nobody", question)[1]["experts"] == experts.names
        for nonsense in ({}, [], {"instruction": 3}):
            assert ask("base", nonsense)[0] == 400
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_v2_learns_the_answers_and_the_cartridge_follows_the_reader(capsys):
    answers = example("v2_and_cartridges").main(["--steps", "2"])
    assert set(answers) == {"v2", "cartridge", "base"}
    assert answers["v2"] != answers["base"]
    assert "V2" in capsys.readouterr().out
