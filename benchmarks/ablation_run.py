"""One run of the ablation grid: add an adapter, train it, score it on unseen commands."""

import json
import random
import time

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.ablation_grid import Cell
from benchmarks.ablation_variants import apply_variant
from llama_adapter_edu import (
    AdaptionPromptConfig,
    TrainingConfig,
    add_adaption_prompts,
    encode_dataset,
    finetune,
    load_llama,
    remove_adapter,
)
from llama_adapter_edu.adapters.manage import adapter_configs
from llama_adapter_edu.course.tasks.home_commands import generate, home_commands, rooms
from llama_adapter_edu.data import evaluate
from llama_adapter_edu.data.batches import collate
from llama_adapter_edu.data.encoding import IGNORE_INDEX
from llama_adapter_edu.training.loss import answer_loss

_worker: dict = {}  # what each process loads once: the Llama, its tokenizer, the rows to score


def base_dtype(cpu: bool) -> str:
    """On a GPU the frozen base is in bfloat16: several times faster. Adapters stay float32."""
    return "float32" if cpu or not torch.cuda.is_available() else "bfloat16"


def training_rows(n_rooms: int, n_rows: int, seed: int) -> list[dict[str, str]]:
    """The first `n_rows` training commands about `n_rooms` rooms, both drawn from the seed."""
    chosen = set(random.Random(seed).sample(rooms("train"), n_rooms))
    rows = [
        row for row in generate("train", seed=seed) if json.loads(row["output"])["room"] in chosen
    ]
    return rows[:n_rows]


def start_worker(model: str | None, cpu: bool, n_rows: int, deadline: float, threads: int) -> None:
    """Load the Llama into this process."""
    torch.set_num_threads(threads)
    accelerator = Accelerator(cpu=cpu)
    dtype = getattr(torch, base_dtype(cpu))
    llama, tokenizer = load_llama(model, device=accelerator.device, dtype=dtype)
    # The first adapter switches the attention over for good: let no run be the first.
    add_adaption_prompts(llama, AdaptionPromptConfig(adapter_len=1, adapter_layers=1))
    remove_adapter(llama, "default")
    scored = encode_dataset(home_commands("validation", n_rows), tokenizer)
    _worker.update(
        llama=llama,
        tokenizer=tokenizer,
        accelerator=accelerator,
        scored=scored,
        deadline=deadline,
        attention=llama.config._attn_implementation,
    )


def run_cell(job: tuple[Cell, int]) -> dict | None:
    """Train and score one cell with one seed. None if the time is up."""
    if time.time() > _worker["deadline"]:
        return None
    cell, seed = job
    llama, start = _worker["llama"], time.perf_counter()
    train = encode_dataset(training_rows(cell.rooms, cell.rows, seed), _worker["tokenizer"])
    outcome = {"first_loss": None}
    try:
        if cell.adapter_layers:
            add_variant(cell, seed)
            outcome = train_adapter(cell, seed, train)
        trained, scores = time.perf_counter(), score(train)
    finally:  # the next run finds the Llama as this one did, also after an error
        if adapter_configs(llama):
            remove_adapter(llama, "default")
        llama.set_attn_implementation(_worker["attention"])
    seconds = {
        "train_seconds": round(trained - start, 1),
        "seconds": round(time.perf_counter() - start, 1),
    }
    return {"settings": cell.changes(), "seed": seed} | scores | outcome | seconds


def add_variant(cell: Cell, seed: int) -> None:
    """Give the Llama the cell's adapter, its prompts drawn from the seed."""
    names = AdaptionPromptConfig.__dataclass_fields__.keys() & Cell.__dataclass_fields__
    llama = _worker["llama"]
    set_seed(seed)
    config = AdaptionPromptConfig(**{name: getattr(cell, name) for name in names})
    add_adaption_prompts(llama, config)
    apply_variant(llama, cell.gate_start, cell.softmax, cell.dtype)


def train_adapter(cell: Cell, seed: int, train: Dataset) -> dict:
    """Train on the rows; the loss of the first step, and whether the run broke down."""
    names = ("steps", "batch_size", "learning_rate")
    config = TrainingConfig(**{name: getattr(cell, name) for name in names}, seed=seed)
    accelerator = _worker["accelerator"]
    # The mask that a joint softmax needs is built in a way that a graph cannot record.
    fast = accelerator.device.type == "cuda" and cell.softmax == "two"
    options = {"accelerator": accelerator, "progress": False, "cuda_graphs": fast}
    try:
        history = finetune(_worker["llama"], _worker["tokenizer"], train, config, **options)
    except FloatingPointError as error:
        return {"first_loss": None, "diverged": str(error)}
    return {"first_loss": history.losses[0]}


def score(train: Dataset) -> dict:
    """Exact match and loss on the unseen commands, and the loss on up to 200 training rows."""
    llama, tokenizer, scored = (_worker[name] for name in ("llama", "tokenizer", "scored"))
    answers = evaluate.generate_answers(
        llama,
        tokenizer,
        scored.select_columns(["instruction", "input", "output"]),
        max_new_tokens=evaluate.longest_answer(scored, tokenizer),
        batch_size=200,
    )
    return {
        "exact_match": evaluate.exact_match(answers, scored["output"][:]),
        "train_loss": mean_loss(llama, tokenizer, train.select(range(min(200, len(train))))),
        "validation_loss": mean_loss(llama, tokenizer, scored),
    }


def mean_loss(
    llama: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dataset: Dataset
) -> float:
    """Mean cross entropy (nats per token) of the answers, all labelled tokens alike."""
    total, tokens = 0.0, 0
    with torch.no_grad():
        for start in range(0, len(dataset), 50):
            rows = [dataset[i] for i in range(start, min(start + 50, len(dataset)))]
            batch = collate(rows, tokenizer.pad_token_id)
            batch = {name: tensor.to(llama.device) for name, tensor in batch.items()}
            n = int((batch["labels"] != IGNORE_INDEX).sum())
            total, tokens = total + n * answer_loss(llama, batch).item(), tokens + n
    return total / tokens
