"""What `finetune` trains on: rows of many kinds give the right loss, or are refused in words."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset, DatasetDict, IterableDataset
from tiny_run import TOKENIZER, tiny_model, tiny_rows, tiny_run

from llama_adapter_edu import TrainingConfig, finetune
from llama_adapter_edu.adapters.manage import adapter_prompts
from llama_adapter_edu.course.tasks.packing import pack
from llama_adapter_edu.training.resume import ResumeError


def first_loss(rows, **settings):
    model = tiny_model()
    with torch.no_grad():
        for prompt in adapter_prompts(model, "default").values():
            torch.manual_seed(1)
            prompt.gate.normal_()
    return tiny_run(model=model, rows=rows, steps=1, **settings)[0].losses[0]


def alone(rows):
    """The mean over the labelled tokens of the rows, each computed alone, from the logits."""
    model = tiny_model()
    with torch.no_grad():
        for prompt in adapter_prompts(model, "default").values():
            torch.manual_seed(1)
            prompt.gate.normal_()
        losses = []
        for row in rows:
            ids, labels = (torch.as_tensor(row[name]) for name in ("input_ids", "labels"))
            if len(ids) > 1:
                logits = model(ids[None]).logits[0, :-1]
                loss = F.cross_entropy(logits, labels[1:], reduction="none")
                losses += loss[labels[1:] != -100].tolist()
    return sum(losses) / len(losses)


@pytest.mark.parametrize("size", [None, 1])
def test_packed_rows_train_as_their_examples_would(size):
    examples = list(tiny_rows(n=12))
    packed = pack(examples, 24)
    settings = {"batch_size": len(packed), "micro_batch_size": size}
    assert first_loss(packed, **settings) == pytest.approx(alone(examples), abs=1e-5)
    labelled = [{**row, "labels": row["input_ids"]} for row in examples]
    by_others = [  # another packer's rows, in which each first token has a label, too
        {**row, "labels": row["input_ids"]} for row in pack(labelled, 24)
    ]
    assert first_loss(by_others, **settings) == pytest.approx(alone(labelled), abs=1e-5)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_rows_without_labels_and_of_one_token_change_nothing_in_micro_batches(size):
    rows = list(tiny_rows(n=7))
    rows[2] = {**rows[2], "labels": [-100] * len(rows[2]["labels"])}
    rows[5] = {"input_ids": [7], "labels": [7]}
    whole = tiny_run(rows=rows, batch_size=4)[0].losses
    assert tiny_run(rows=rows, batch_size=4, micro_batch_size=size)[0].losses == pytest.approx(
        whole, abs=1e-5
    )
    assert first_loss(rows, batch_size=7, micro_batch_size=size) == pytest.approx(
        alone(rows), abs=1e-5
    )


class Lazy(torch.utils.data.Dataset):
    """A map-style dataset of torch's."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, number):
        if number >= len(self.rows):
            raise IndexError(number)
        return self.rows[number]


def tensors(rows):
    return [{name: torch.tensor(row[name]) for name in row} for row in rows]


def arrays(rows):
    return [{name: np.array(row[name]) for name in row} for row in rows]


def masked(rows):
    return [{**row, "attention_mask": [1] * len(row["labels"])} for row in rows]


def with_texts(rows):
    talk = [{"role": "user", "content": "hello"}]
    return [{**row, "instruction": "do", "id": 3, "messages": talk, "input": None} for row in rows]


@pytest.mark.parametrize(
    "kind", [list, Lazy, tensors, arrays, masked, with_texts, Dataset.from_list]
)
def test_rows_of_any_kind_train_alike(kind):
    rows = list(tiny_rows())
    assert tiny_run(rows=kind(rows))[0].losses == tiny_run()[0].losses


def stream(rows):
    return IterableDataset.from_generator(lambda: iter(rows))


def test_a_stream_trains_on_as_many_rows_as_the_steps_need(tmp_path):
    rows = list(tiny_rows(n=37))
    wanted = tiny_run(rows=rows[: 4 * 8], steps=4)[0].losses
    assert tiny_run(rows=stream(rows), steps=4)[0].losses == wanted
    assert tiny_run(rows=(row for row in rows), steps=4)[0].losses == wanted
    # One that ends earlier is gone through again, as a list is; and a run of it goes on.
    whole = tiny_run(rows=rows[:20], steps=4)[0].losses
    with pytest.raises(FloatingPointError):
        tiny_run(tmp_path, model=stopped(), rows=stream(rows[:20]), steps=4, save_every=1)
    assert tiny_run(tmp_path, rows=stream(rows[:20]), steps=4, save_every=1)[0].losses == whole


def stopped():
    """A model that fails in its third step."""
    model, calls = tiny_model(), []

    def spoil(module, inputs, output):
        calls.append(1)
        if len(calls) == 3:
            output.logits = output.logits * float("nan")

    model.register_forward_hook(spoil)
    return model


ROW = {"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (DatasetDict(train=tiny_rows(), test=tiny_rows()), r"\['test', 'train'\]: pass one"),
        ([], "empty"),
        (stream([]), "empty"),
        ([{"instruction": "do", "output": "done"}], "as encode_dataset makes them"),
        (["do this"], "as encode_dataset makes them; here it is str"),
        ([{"input_ids": [5, 6]}], "needs input_ids and labels"),
        ([{**ROW, "token_type_ids": [0, 0, 1]}], r"leave out the columns \['token_type_ids'\]"),
        ([{**ROW, "seq_lengths": [2, 1]}], "seq_lengths"),
        ([{**ROW, "image": object()}], "image"),
        ([ROW, {**ROW, "position_ids": [0, 1, 0]}], "row 1 has"),
        ([ROW, {"input_ids": [5], "labels": [5, 6]}], "row 1: expected one number for each token"),
        ([{"input_ids": [[5, 6]], "labels": [[5, 6]]}], "row 0: expected one number"),
        ([{"input_ids": [], "labels": []}], "row 0: expected one number"),
        ([ROW, {**ROW, "input_ids": [5, 6, 96]}], "row 1: input_ids go from 5 to 96"),
        ([{**ROW, "labels": [-100, 6, -1]}], "row 0: labels go from -1 to 6"),
        ([ROW | {"attention_mask": [1, 1, 1]}, ROW | {"attention_mask": [1, 1, 0]}], "row 1 holds"),
    ],
)
def test_what_cannot_be_trained_on_right_is_refused_before_the_first_step(tmp_path, rows, words):
    model = tiny_model()
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(ValueError, match=words):
        tiny_run(tmp_path / "runs", model=model, rows=rows)
    assert all(map(torch.equal, before, model.parameters()))
    assert not (tmp_path / "runs").exists()


def test_a_tokenizer_without_a_pad_token():
    class Bare:
        pad_token_id = None

    with pytest.raises(ValueError, match=r"set tokenizer\.pad_token"):
        finetune(tiny_model(), Bare, tiny_rows(), progress=False)


@pytest.mark.parametrize("column", ["labels", "input_ids"])
def test_one_other_number_in_a_middle_row_is_another_run(tmp_path, column):
    rows = list(tiny_rows())
    tiny_run(tmp_path, rows=rows)
    rows[18] = {**rows[18], column: [*rows[18][column][:-1], 42]}
    with pytest.raises(ResumeError, match="data was"):
        tiny_run(tmp_path, rows=rows)


def test_the_callers_random_numbers_go_on_as_if_nothing_had_happened():
    def draw():
        devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
        numbers = [torch.rand((), device=device).item() for device in devices]
        return [random.random(), np.random.rand(), *numbers]

    def seed():
        random.seed(3)
        np.random.seed(3)
        torch.manual_seed(3)

    seed()
    expected = draw()
    model = tiny_model(attention_dropout=0.2)
    seed()
    finetune(model, TOKENIZER, tiny_rows(), TrainingConfig(steps=2), progress=False)
    assert draw() == expected
    seed()
    with pytest.raises(FloatingPointError):
        finetune(stopped(), TOKENIZER, tiny_rows(), TrainingConfig(steps=4), progress=False)
    torch.manual_seed(3)  # making the model drew some
    assert draw() == expected
