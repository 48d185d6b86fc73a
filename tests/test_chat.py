"""Who answers in a chat, whatever the folders of the adapters are called."""

import builtins

import pytest

from llama_adapter_edu import AdaptionPromptConfig, add_adaption_prompts, chat, save_adapter
from llama_adapter_edu.adapters.manage import adapter_prompts


@pytest.fixture
def talk(monkeypatch, capsys, tiny, llama, tmp_path):
    """`talk(folders, lines)`: the prompts with who answers, and the answers between them."""
    monkeypatch.setattr(chat, "load_llama", lambda *_, **__: (tiny(vocab_size=49152), llama[1]))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    def say(folders, *lines):
        for number, folder in enumerate(folders):
            model = add_adaption_prompts(tiny(vocab_size=49152), AdaptionPromptConfig(3, 2))
            for prompt in adapter_prompts(model, "default").values():
                prompt.gate.data.fill_(3.0 - 6.0 * number)
            save_adapter(model, folder)
        said, prompts = iter(lines), []

        def type_line(prompt):
            prompts.append(prompt.strip("\n> "))
            print("<prompt>", end="")
            return next(said, "")

        monkeypatch.setattr(builtins, "input", type_line)
        assert chat.chat(folders, 4, cpu=True) == 0
        return prompts, [text.strip() for text in capsys.readouterr().out.split("<prompt>")[1:-1]]

    return say


@pytest.mark.parametrize("folder", ["base", "v1.2 final", "pop", "_modules", "~/größer"])
def test_a_folder_may_have_any_name(talk, folder):
    (who, *_), (by_adapter,) = talk([folder], "Hello")
    assert who == folder.replace("~/", "").replace("base", "base-1")
    prompts, (_, by_base, _, again) = talk([folder], "/use base", "Hello", f"/use {who}", "Hello")
    assert prompts == [who, "base", "base", who, who]
    assert by_adapter == again != by_base


def test_folders_of_the_same_name_are_told_apart(talk):
    folders = ["a/mine", "b/mine"]
    prompts, (second, _, first) = talk(folders, "Hello", "/use mine", "Hello")
    assert prompts == ["mine-2", "mine-2", "mine", "mine"]
    assert first != second
