"""The document of lesson 10, and the benchmark of five ways to put it into a Llama."""

import json

import pytest
import torch

from benchmarks import many_papers
from benchmarks.five_ways import SLOTS, WAYS, prepare
from benchmarks.methods import Base
from benchmarks.report_more import five_ways
from llama_adapter_edu import load_llama
from llama_adapter_edu.adapters.manage import adapter_prompts
from llama_adapter_edu.course.tasks.document import FACTS, document, question_rows, questions


@pytest.fixture(scope="module")
def tokenizer():
    return load_llama()[1]


@pytest.fixture()
def task(tokenizer):
    base = Base("tiny", torch.device("cpu"), torch.float32)
    return base, many_papers.Task(base, tokenizer, 0, torch.device("cpu"))


def test_what_is_predicted_are_the_answers_and_nothing_else(tokenizer):
    for split in ("train", "test"):
        rows = question_rows(tokenizer, split)
        for (asked, answer), ids, predicts in zip(
            questions(split), rows.input_ids, rows.predicts, strict=True
        ):
            targets = ids[1:][predicts[:-1]]
            assert tokenizer.decode(targets) == answer
            before = ids[: int(predicts.nonzero()[0]) + 1]
            assert tokenizer.decode(before) == asked
        assert rows.attention_mask.sum(dim=1).max() == rows.input_ids.shape[1]


def test_every_answer_stands_in_the_document_and_no_question_in_both_splits():
    assert all(answer in document() for *_, answer in FACTS)
    asked = {split: {question for question, _ in questions(split)} for split in ("train", "test")}
    assert not asked["train"] & asked["test"]
    assert document(0) != document(1) and sorted(document(0)) == sorted(document(1))


@pytest.mark.parametrize("way", WAYS)
def test_a_step_of_each_way_learns_and_leaves_the_base_as_it_was(task, way):
    base, task = task
    before = {name: weight.clone() for name, weight in base.weights.items()}
    torch.manual_seed(0)
    model = prepare(way, base.model(), task.document)
    rows = task.rows["trained"]
    plain = base.model()(rows.input_ids, attention_mask=rows.attention_mask).logits
    fresh = task.logits(model, "trained")
    starts_as_the_base = torch.allclose(fresh[rows.predicts], plain[rows.predicts], atol=1e-6)
    assert starts_as_the_base == (way in ("prompts", "V2", "LoRA"))
    learnt = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(learnt, lr=1.0)
    task.kl("trained", fresh).backward()
    optimizer.step()
    moved = task.logits(model, "trained")
    assert not torch.equal(moved, fresh)
    assert all(torch.equal(base.weights[name], weight) for name, weight in before.items())


def test_a_fresh_cartridge_is_the_documents_first_tokens_and_its_first_slot_stays(task):
    base, task = task
    model = prepare("cartridge", base.model(), task.document)
    rows = task.rows["trained"]
    context = task.document[:, :SLOTS].expand(len(rows.input_ids), -1)
    mask = torch.cat([torch.ones_like(context), rows.attention_mask], dim=1)
    ids = torch.cat([context, rows.input_ids], dim=1)
    read = base.model()(ids, attention_mask=mask).logits[:, SLOTS:]
    mine = task.logits(model, "trained")
    torch.testing.assert_close(mine[rows.predicts], read[rows.predicts], atol=1e-5, rtol=0)
    [start, *_] = adapter_prompts(model, "default")[0].keys_values()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(int(parameter.requires_grad))
    [moved, *_] = adapter_prompts(model, "default")[0].keys_values()
    assert torch.equal(moved[:, 0], start[:, 0])
    torch.testing.assert_close(moved[:, 1:], start[:, 1:] + 1)


def test_the_loss_is_the_kl_of_torchs_own_distributions(task):
    _, task = task
    rows = task.rows["other"]
    torch.manual_seed(0)
    logits = torch.randn_like(task.teacher["other"])
    pair = (
        torch.distributions.Categorical(logits=x[rows.predicts].double())
        for x in (task.teacher["other"], logits)
    )
    expected = torch.distributions.kl_divergence(*pair).mean()
    assert task.kl("other", logits).item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_tiny_run_is_kept_and_reported(tmp_path, monkeypatch, capsys):
    path = tmp_path / "many_papers.json"
    options = ["--device", "cpu", "--shape", "tiny", "--steps", "1", "--seeds", "2"]
    monkeypatch.setattr("sys.argv", ["many_papers", *options, "--output", str(path)])
    many_papers.main()
    stored = json.loads(path.read_text(encoding="utf-8"))
    for way in WAYS:
        runs = [run for run in stored["runs"] if run["way"] == way]
        assert sorted(run["seed"] for run in runs) == [0, 0, 0, 1]
        best = min(runs[:3], key=lambda run: run["kl_trained"])
        assert runs[3]["learning_rate"] == best["learning_rate"]
    lines = five_ways(stored)
    assert sum(line.startswith("| ") for line in lines) == 2 + len(WAYS)
    assert "1 step" in "\n".join(lines) and stored["conditions"]["device"] in "\n".join(lines)
