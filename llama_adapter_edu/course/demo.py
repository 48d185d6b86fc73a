"""The main job, `python -m llama_adapter_edu finetune`: a Llama learns home commands.

It answers unseen commands as it is, is fine-tuned, and answers them again. The run's folder then
holds the adapter, a plot, and the figures in `results.json`.
"""

import json
import platform
import time
from pathlib import Path

import accelerate
import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import set_seed
from datasets import Dataset

from llama_adapter_edu.adapters.config import AdaptionPromptConfig
from llama_adapter_edu.adapters.inspect import parameter_report
from llama_adapter_edu.adapters.manage import adapter_prompts, add_adaption_prompts
from llama_adapter_edu.base_models.load import load_llama
from llama_adapter_edu.course.tasks.home_commands import home_commands
from llama_adapter_edu.data import evaluate
from llama_adapter_edu.data.encoding import encode_dataset
from llama_adapter_edu.files.save_load import WEIGHTS_FILE, save_adapter
from llama_adapter_edu.training.loop import History, TrainingConfig, finetune

SHOWN = 5


def run_main_job(
    output: str,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    adapter_len: int,
    adapter_layers: int,
    init_std: float,
    test_rows: int,
    seed: int,
    model: str | None = None,
    cpu: bool = False,
) -> int:
    """Fine-tune on home commands, print and save what came of it. Returns 0.

    Raises:
        ValueError, OSError: a setting is out of range or the folder cannot be written. Both are
            found before the training starts.
    """
    start = time.perf_counter()
    config = AdaptionPromptConfig(adapter_len, adapter_layers, init_std=init_std)
    training = TrainingConfig(steps, batch_size, learning_rate, seed=seed)
    test = home_commands("test", test_rows, seed=seed)
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)

    accelerator = Accelerator(cpu=cpu)
    llama, tokenizer = load_llama(model, device=accelerator.device)
    train = encode_dataset(home_commands("train", steps * batch_size, seed=seed), tokenizer)
    set_seed(seed)
    add_adaption_prompts(llama, config)
    print(f"The task: {test[0]['instruction']}  ->  {test[0]['output']}")
    print(f"{len(test)} commands to test with: no room and no phrasing occurs in the training.\n")

    def answer() -> list[str]:
        longest = evaluate.longest_answer(test, tokenizer)
        return evaluate.generate_answers(
            llama, tokenizer, test, max_new_tokens=longest, progress=True
        )

    before = answer()  # all gates are zero: this is the base model
    history = finetune(llama, tokenizer, train, training, accelerator=accelerator)
    after = answer()

    save_adapter(llama, folder)
    plot = _plot(history, list(adapter_prompts(llama, "default")), folder / "training.png")
    results = {
        "exact_match_base": evaluate.exact_match(before, test["output"]),
        "exact_match_tuned": evaluate.exact_match(after, test["output"]),
        "test_rows": test_rows,
        "steps": steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "seed": seed,
        "final_loss": history.losses[-1],
        "adapter_bytes": (folder / WEIGHTS_FILE).stat().st_size,
        "seconds": round(time.perf_counter() - start, 1),
        "device": _device(accelerator),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "accelerate": accelerate.__version__,
    }
    (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")

    _print_answers(test, before, after)
    print(f"exact match, base model  {results['exact_match_base']:7.1%}")
    print(f"exact match, fine-tuned  {results['exact_match_tuned']:7.1%}")
    print(f"\n{parameter_report(llama)}")
    print(f"adapter  {folder / WEIGHTS_FILE}  ({results['adapter_bytes'] / 1e6:.2f} MB)")
    print(f"plot     {plot}")
    print(f"{results['seconds']:.0f} s on {results['device']}")
    print(f"\nTalk to it:  python -m llama_adapter_edu chat --adapter {folder}")
    return 0


def _print_answers(test: Dataset, before: list[str], after: list[str]) -> None:
    print()
    for row, base, tuned in list(zip(test, before, after, strict=True))[:SHOWN]:
        mark = "right" if tuned == row["output"] else f"expected {row['output']}"
        print(f"command  {row['instruction']}")
        print(f"  before {' '.join(base.split())[:88]}")
        print(f"  after  {tuned}  ({mark})")
    print()


def _plot(history: History, layers: list[int], path: Path) -> Path | str:
    """The loss of each step, and the gates of each layer and head at the end; or why not."""
    try:
        import matplotlib.pyplot as plt

        from llama_adapter_edu.course import figures
    except ModuleNotFoundError as error:
        return f"left out, it needs {error.name}, which is in the extra `course`"
    with plt.rc_context():
        figures.use_style()
        figure, (left, right) = plt.subplots(ncols=2, figsize=(9, 4))
        figures.plot_loss(left, history.losses)
        figures.plot_gates(right, history.gates[-1], layers=layers)
        figure.savefig(path)
        plt.close(figure)
    return path


def _device(accelerator: Accelerator) -> str:
    if accelerator.device.type == "cuda":
        return torch.cuda.get_device_name()
    return f"{accelerator.device.type}, {torch.get_num_threads()} threads, {platform.machine()}"
