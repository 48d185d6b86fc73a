"""The command line: what it prints, returns and refuses; small runs of main job and chat."""

import builtins
import json
import subprocess
import sys

import pytest
import torch
from gates import open_gates
from safetensors.torch import load_file

from llama_adapter_edu import AdaptionPromptConfig, add_adaption_prompts, chat, save_adapter
from llama_adapter_edu import __main__ as command_line
from llama_adapter_edu.course import demo
from llama_adapter_edu.files.save_load import WEIGHTS_FILE
from llama_adapter_edu.job import score


def run(*arguments: str) -> int:
    return command_line.main(arguments)


def test_help_and_the_package_load_nothing_heavy():
    code = "import sys; from llama_adapter_edu import __main__ as m\ntry: m.main(['--help'])\n"
    code += (
        "except SystemExit: print(sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    for command in ("doctor", "progress", "report", "finetune", "chat"):
        assert command in done.stdout


@pytest.mark.parametrize("arguments", [(), ("fly",), ("finetune", "--steps", "many")])
def test_misuse_ends_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        run(*arguments)
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--steps", "0"), "steps must be above 0, got 0"),
        (("--adapter-len", "0"), "adapter_len must be a whole number"),
        (("--adapter-layers", "31"), "the model has 30 layers. Choose 1 to 30"),
        (("--test-rows", "0"), "Choose n from 1 to"),
        (("--model", "./nowhere"), "There is no folder ./nowhere"),
        (("--output", "setup.cfg/x"), "setup.cfg"),
    ],
)
def test_bad_settings_are_refused_before_the_work_starts(
    tmp_path, monkeypatch, capsys, arguments, words
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "setup.cfg").write_text("a file in the way")
    monkeypatch.setattr(score, "generate_answers", lambda *_, **__: pytest.fail())
    assert run("finetune", "--cpu", *arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert words in error
    assert "Traceback" not in error


SHORT = ["--cpu", "--steps", "2", "--batch-size", "2", "--adapter-layers", "2"]


def test_a_short_main_job_reports_and_saves(tmp_path, capsys):
    assert run("finetune", "--output", str(tmp_path), "--test-rows", "2", *SHORT) == 0
    printed = capsys.readouterr().out
    for text in (
        "2 commands to test with",
        "exact match, base model     0.0%",
        "exact match, fine-tuned",
        "11,538 of 134,526,546 parameters train",
        str(tmp_path / WEIGHTS_FILE),
        str(tmp_path / "training.png"),
        f"chat --adapter {tmp_path}",
    ):
        assert text in printed
    assert printed.count("  before ") == printed.count("  after  ") == 2
    assert (tmp_path / "training.png").read_bytes().startswith(b"\x89PNG")
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["exact_match_base"] == 0
    assert results["adapter_bytes"] == (tmp_path / WEIGHTS_FILE).stat().st_size


def test_a_main_job_gives_the_same_twice(tmp_path, small_llama_folder):
    folders = [tmp_path / "one", tmp_path / "two"]
    options = ["--model", str(small_llama_folder), "--test-rows", "1", *SHORT]
    assert [run("finetune", "--output", str(folder), *options) for folder in folders] == [0, 0]
    one, two = (load_file(folder / WEIGHTS_FILE) for folder in folders)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    one, two = (json.loads((folder / "results.json").read_text()) for folder in folders)
    assert one["final_loss"] == two["final_loss"]


@pytest.fixture
def talk(monkeypatch, capsys, tiny, llama, tmp_path):
    """Talk to a tiny model with an adapter in a folder "brackets": what is printed."""
    monkeypatch.setattr(chat, "load_llama", lambda *_, **__: (tiny(vocab_size=49152), llama[1]))
    saved = add_adaption_prompts(tiny(vocab_size=49152), AdaptionPromptConfig(3, 2))
    open_gates(saved, std=3.0)
    save_adapter(saved, tmp_path / "brackets")

    def say(*lines: str, adapters=("brackets",)) -> str:
        said = iter(lines)

        def type_line(prompt: str) -> str:
            print(prompt, end="")
            try:
                return next(said)
            except StopIteration:
                raise EOFError from None

        monkeypatch.setattr(builtins, "input", type_line)
        folders = [x for name in adapters for x in ("--adapter", str(tmp_path / name))]
        code = run("chat", "--cpu", "--max-new-tokens", "4", *folders)
        output = capsys.readouterr()
        return f"{output.out}{output.err}exit {code}"

    return say


def last_answer(said: str) -> str:
    """What stands between the last two prompts."""
    return said.split("> ")[-2].rpartition("\n\n")[0]


def test_chat_changes_who_answers(talk):
    by_brackets = last_answer(talk("Hello"))
    by_base = last_answer(talk("/use base", "Hello"))
    again = last_answer(talk("/use base", "Hello", "/use brackets", "Hello"))
    assert by_base and by_brackets == again != by_base


def test_chat_ends_on_an_empty_line_or_the_end_of_input(talk):
    assert talk("").endswith("exit 0")
    assert talk(adapters=()).endswith("exit 0")


def test_chat_says_what_it_did_not_understand(talk):
    said = talk("/use nobody", "/help", "")
    assert "Not understood: /use nobody. Try /use base or /use brackets, or /quit." in said
    assert "Not understood: /help" in said


def test_chat_with_an_adapter_that_is_not_there(talk, tmp_path):
    said = talk(adapters=("elsewhere",))
    assert f"error: no adapter in {tmp_path / 'elsewhere'}: there is no such file or folder" in said
    assert said.endswith("exit 1")


def test_ctrl_c_is_no_traceback(monkeypatch, capsys):
    def interrupted(**_):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "run_demo", interrupted)
    assert run("finetune") == 130
    assert "Stopped" in capsys.readouterr().err
