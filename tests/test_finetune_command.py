"""`python -m llama_adapter_edu finetune --data ROWS`: from a file of rows to an adapter."""

import json
import random
import signal

import pytest
import torch
from safetensors.torch import load_file
from test_chats import CHATML, byte_tokenizer

from llama_adapter_edu import __main__ as command_line
from llama_adapter_edu import load_adapter
from llama_adapter_edu.data.encoding import IGNORE_INDEX, encode_dataset
from llama_adapter_edu.files.save_load import WEIGHTS_FILE
from llama_adapter_edu.job import own_data, run, score

QUICK = ["--cpu", "--steps", "3", "--batch-size", "4", "--adapter-len", "2"]


@pytest.fixture
def tokenizer():
    tokenizer = byte_tokenizer(CHATML)
    tokenizer.pad_token = "<s>"
    return tokenizer


@pytest.fixture(autouse=True)
def small(monkeypatch, tiny, tokenizer, tmp_path):
    """The job gets a small random model; files are looked for in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    build = lambda *_, **__: (tiny(vocab_size=len(tokenizer)), tokenizer)  # noqa: E731
    monkeypatch.setattr(run, "load_llama", build)
    return build


def write(name: str, rows: list) -> str:
    with open(name, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return name


def instructions(n: int, answer: str = "It is {}.") -> list[dict]:
    return [{"instruction": f"What is {i}?", "output": answer.format(i)} for i in range(n)]


def chats(n: int, keys=("messages", "role", "content", "user", "assistant")) -> list[dict]:
    field, role, content, user, assistant = keys
    turns = [[(user, f"Hi {i}"), (assistant, "Hello."), (user, "And?"), (assistant, f"So {i}.")]
             for i in range(n)]  # fmt: skip
    return [{field: [{role: who, content: text} for who, text in chat]} for chat in turns]


def finetune(*arguments: str) -> int:
    return command_line.main(["finetune", *QUICK, *arguments])


@pytest.mark.parametrize(
    "rows",
    [
        instructions(30),
        chats(30),
        chats(30, ("conversations", "from", "value", "human", "gpt")),
    ],
    ids=["alpaca", "messages", "sharegpt"],
)
def test_rows_of_each_form_become_an_adapter(rows, small, capsys, tmp_path):
    assert finetune("--data", write("rows.jsonl", rows), "--output", "mine") == 0
    printed = capsys.readouterr().out
    assert "27 rows of rows.jsonl to learn from, 3 others to test with." in printed
    assert printed.count("question  ") == printed.count("  after  ") == 3
    assert "exact match, fine-tuned" in printed and "loss, fine-tuned" in printed
    assert "chat --adapter mine" in printed
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == [
        *("adapter_config.json", WEIGHTS_FILE, "results.json", "training.png"),
    ]
    results = json.loads((tmp_path / "mine" / "results.json").read_text())
    assert results["test_rows"] == 3 and results["steps"] == 3
    assert results["loss_tuned"] < results["loss_base"]
    model, _ = small()
    load_adapter(model, tmp_path / "mine")


def test_the_held_out_loss_is_the_mean_over_all_labelled_tokens(small):
    model, tokenizer = small()
    rows = encode_dataset(instructions(11, "answer " * 3 + "{}") + instructions(9), tokenizer)
    total, n_tokens = 0.0, 0
    for row in rows:
        ids = torch.tensor([row["input_ids"]])
        with torch.no_grad():
            likelihood = model(ids).logits.log_softmax(-1)[0, :-1]
        for position, label in enumerate(row["labels"][1:]):
            if label != IGNORE_INDEX:
                total, n_tokens = total - float(likelihood[position, label]), n_tokens + 1
    mean = score.mean_loss(model, rows, tokenizer.pad_token_id)
    assert mean == pytest.approx(total / n_tokens, rel=1e-5)


def test_held_out_questions_are_never_among_those_learnt(tokenizer):
    rows = instructions(20) + instructions(20, "Other: {}") + instructions(5)
    random.Random(0).shuffle(rows)
    encoded = encode_dataset(rows, tokenizer)
    train, test = own_data.hold_out(encoded, 6, seed=1)
    assert not set(train["instruction"]) & set(test["instruction"])
    assert 6 <= len(test) <= 8 and len(train) + len(test) == 45
    both = sorted(train.to_list() + test.to_list(), key=str)
    assert both == sorted(encoded.to_list(), key=str)
    again = own_data.hold_out(encoded, 6, seed=1)
    assert [part.to_list() for part in again] == [train.to_list(), test.to_list()]
    assert own_data.hold_out(encoded, 6, seed=2)[1].to_list() != test.to_list()


def test_rows_that_cannot_be_used_are_counted_with_their_lines(capsys):
    rows = instructions(12)
    rows[3] = {"instruction": "no answer", "output": " "}
    rows[5] = rows[8] = {"instruction": "x" * 200, "output": "long"}
    rows[7] = {"question": "?"}
    write("rows.jsonl", rows)
    assert finetune("--data", "rows.jsonl", "--max-length", "120", "--test-rows", "2") == 0
    printed = capsys.readouterr().out
    for text in (
        "Left out 4 of 12 rows: 1 with an empty answer (rows.jsonl, line 4); ",
        "2 longer than max_length=120 tokens (rows.jsonl, line 6, rows.jsonl, line 9); ",
        "1 without the fields or texts of a row (rows.jsonl, line 8).",
        "6 rows of rows.jsonl to learn from, 2 others to test with.",
    ):
        assert text in printed


def test_long_answers_are_judged_by_their_loss_alone(capsys, tmp_path):
    write("rows.jsonl", instructions(12, "long " * 30 + "{}"))
    assert finetune("--data", "rows.jsonl", "--output", "mine", "--test-rows", "7") == 0
    printed = capsys.readouterr().out
    assert "No exact match: there are answers of more than 64 tokens." in printed
    assert printed.count("  after  ") == 5
    results = json.loads((tmp_path / "mine" / "results.json").read_text())
    assert "exact_match_base" not in results and results["loss_tuned"] < results["loss_base"]


def test_a_stopped_job_goes_on_and_ends_as_if_it_had_not_stopped(
    small, monkeypatch, capsys, tmp_path
):
    data = write("rows.jsonl", instructions(30))
    assert finetune("--data", data, "--output", "whole") == 0

    calls = []

    def stop_in_the_second_step(model, *_):
        calls.append(model.training)
        if model.training and sum(calls) == 2:
            signal.raise_signal(signal.SIGINT)

    model, tokenizer = small()
    model.register_forward_pre_hook(stop_in_the_second_step)
    with monkeypatch.context() as patch:
        patch.setattr(run, "load_llama", lambda *_, **__: (model, tokenizer))
        assert finetune("--data", data, "--output", "parts") == 130
    assert "stopped after step 2 of 3" in capsys.readouterr().err
    assert finetune("--data", data, "--output", "parts", "--learning-rate", "0.5") == 1
    assert "learning_rate" in capsys.readouterr().err
    assert finetune("--data", data, "--output", "parts") == 0
    one, two = (load_file(tmp_path / name / WEIGHTS_FILE) for name in ("whole", "parts"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not (tmp_path / "parts" / run.UNFINISHED).exists()


@pytest.mark.parametrize(
    ("rows", "arguments", "words"),
    [
        (instructions(1), (), "none is left to learn from. Add rows, or hold out fewer"),
        (instructions(1) * 9, (), "9 rows with 1 different questions"),
        (instructions(9), ("--test-rows", "9"), "with 9 held out to test with"),
        (instructions(9), ("--test-rows", "0"), "At least 1 row must be held out"),
        (instructions(9), ("--max-length", "3"), "No row is left. Left out 9 of 9 rows"),
        ([{"prompt": "x"}], (), "rows.jsonl, line 1: the field 'instruction' is missing"),
        (instructions(9), ("--steps", "0"), "steps must be above 0"),
        (instructions(9), ("--adapter-layers", "4"), "has 3 layers"),
    ],
)
def test_what_cannot_be_learnt_from_is_refused_in_words(rows, arguments, words, capsys):
    assert finetune("--data", write("rows.jsonl", rows), *arguments) == 1
    error = capsys.readouterr().err
    assert "error: " in error and words in error and "Traceback" not in error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--data", "none.jsonl"), "There is no file 'none.jsonl'"),
        (("--data", "a b/c"), "is neither a path here nor an id"),
        (("--max-length", "9"), "--max-length is for rows of your own"),
    ],
)
def test_data_that_is_not_there_is_named_before_a_model_is_loaded(
    arguments, words, capsys, monkeypatch
):
    monkeypatch.setattr(run, "load_llama", lambda *_, **__: pytest.fail("a model was loaded"))
    assert finetune(*arguments) == 1
    assert words in capsys.readouterr().err
