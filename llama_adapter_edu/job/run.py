"""The job: the model is tested, fine-tuned, tested again, and everything is saved and printed.

A job that was stopped goes on when it is started again with the same settings.
"""

import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import accelerate
import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import set_seed
from transformers import PreTrainedTokenizerBase

from llama_adapter_edu.adapters.config import AdaptionPromptConfig
from llama_adapter_edu.adapters.inspect import parameter_report
from llama_adapter_edu.adapters.manage import adapter_prompts, add_adaption_prompts
from llama_adapter_edu.base_models.load import load_llama
from llama_adapter_edu.files.save_load import WEIGHTS_FILE, save_adapter
from llama_adapter_edu.job.score import Task, print_answers, print_scores, take_test
from llama_adapter_edu.training.loop import History, TrainingConfig, finetune

UNFINISHED = "unfinished"  # in the job's folder: the state of a training that was stopped

Draw = Callable[[History, Sequence[int], Path], None]  # losses and gates, the layers, the file


def run_job(
    task: Callable[[PreTrainedTokenizerBase], Task],
    output: str | os.PathLike,
    *,
    steps: int = 130,
    batch_size: int = 4,
    learning_rate: float = 0.03,
    adapter_len: int = 10,
    adapter_layers: int | None = None,
    init_std: float = 0.3,
    seed: int = 0,
    model: str | None = None,
    cpu: bool = False,
    share_start: bool = False,
    draw: Draw | None = None,
) -> int:
    """Fine-tune on a task, print and save what came of it. Returns 0.

    The folder `output` then holds the adapter, `results.json`, and with `draw` a plot. Until the
    end, a folder in it keeps the state of the training.

    Args:
        adapter_layers: how many of the topmost layers get prompts; 30 if None, or all of a
            shallower model.
        model: as for `load_llama`.
        share_start: as for `finetune` and `generate_answers`.

    Raises:
        ValueError, OSError: a setting is out of range or the folder cannot be written. Both are
            found before the training starts.
        KeyboardInterrupt: Ctrl-C; the message says from where the job goes on.
    """
    start = time.perf_counter()
    config = AdaptionPromptConfig(adapter_len, adapter_layers, init_std=init_std)
    training = TrainingConfig(steps, batch_size, learning_rate, seed=seed)
    folder = Path(output).expanduser()
    folder.mkdir(parents=True, exist_ok=True)

    accelerator = Accelerator(cpu=cpu)
    llama, tokenizer = load_llama(model, device=accelerator.device)
    job = task(tokenizer)
    set_seed(seed)
    add_adaption_prompts(llama, config)
    print(f"{job.about}\n")

    before = take_test(
        llama, tokenizer, job, share_start=share_start
    )  # all gates are zero: this is the base model
    unfinished = folder / UNFINISHED
    how = {"accelerator": accelerator, "resume_folder": unfinished, "share_start": share_start}
    history = finetune(llama, tokenizer, job.train, training, **how)
    after = take_test(llama, tokenizer, job, share_start=share_start)

    save_adapter(llama, folder)
    plot = folder / "training.png"
    if draw and find_spec("matplotlib") is None:  # it comes with the course
        draw = None
    if draw:
        draw(history, list(adapter_prompts(llama, "default")), plot)
    seconds = round(time.perf_counter() - start, 1)
    about = {"steps": steps, "batch_size": batch_size, "learning_rate": learning_rate, "seed": seed}
    results = {
        **{f"{name}_base": value for name, value in before.figures.items()},
        **{f"{name}_tuned": value for name, value in after.figures.items()},
        "test_rows": len(job.test),
        **about,
        "final_loss": history.losses[-1],
        "adapter_bytes": (folder / WEIGHTS_FILE).stat().st_size,
        "seconds": seconds,
        **_machine(accelerator),
    }
    (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(unfinished)

    print_answers(job, before.answers, after.answers)
    print_scores(before.figures, after.figures)
    print(f"\n{parameter_report(llama)}")
    print(f"adapter  {folder / WEIGHTS_FILE}  ({results['adapter_bytes'] / 1e6:.2f} MB)")
    print(f"plot     {plot}" if draw else "no plot: `pip install matplotlib` for one")
    print(f"{seconds:.0f} s on {results['device']}")
    named = f" --model {model}" if model else ""
    print(f"\nTalk to it:  python -m llama_adapter_edu chat --adapter {folder}{named}")
    return 0


def _machine(accelerator: Accelerator) -> dict[str, str]:
    device = f"{accelerator.device.type}, {torch.get_num_threads()} threads, {platform.machine()}"
    return {
        "device": torch.cuda.get_device_name() if accelerator.device.type == "cuda" else device,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "accelerate": accelerate.__version__,
    }
