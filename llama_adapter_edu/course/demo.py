"""The demo, `python -m llama_adapter_edu finetune` without data: a Llama learns home commands."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from llama_adapter_edu.course.tasks.home_commands import home_commands
from llama_adapter_edu.data.encoding import encode_dataset
from llama_adapter_edu.job.run import run_job
from llama_adapter_edu.job.score import Task
from llama_adapter_edu.training.loop import History

STEPS = 90  # with 130, no more unseen commands were right at the end (see benchmarks/NOTES.md)


def run_demo(
    output: str = "runs/home-commands",
    *,
    test_rows: int | None = None,
    steps: int = STEPS,
    batch_size: int = 4,
    seed: int = 0,
    **settings: Any,
) -> int:
    """Fine-tune on home commands; settings and errors as `run_job`. Returns 0.

    Args:
        test_rows: unseen commands to test with; 200 if None.
    """
    test = home_commands("test", 200 if test_rows is None else test_rows, seed=seed)

    def task(tokenizer: PreTrainedTokenizerBase) -> Task:
        train = encode_dataset(home_commands("train", steps * batch_size, seed=seed), tokenizer)
        about = (
            f"The task: {test[0]['instruction']}  ->  {test[0]['output']}\n"
            f"{len(test)} commands to test with: no room and no phrasing occurs in the training."
        )
        return Task(train, test, "command", about, with_loss=False)

    return run_job(
        task,
        output,
        steps=steps,
        batch_size=batch_size,
        seed=seed,
        share_start="model" not in settings,  # not every model can; the course's Llama can
        draw=draw_training,
        **settings,
    )


def draw_training(history: History, layers: Sequence[int], path: Path) -> None:
    """The loss of each step, and the gates of each layer and head at the end, in a picture file."""
    import matplotlib.pyplot as plt

    from llama_adapter_edu.course import figures

    with plt.rc_context():
        figures.use_style()
        figure, (left, right) = plt.subplots(ncols=2, figsize=(9, 4))
        figures.plot_loss(left, history.losses)
        figures.plot_gates(right, history.gates[-1], layers=layers)
        figure.savefig(path)
        plt.close(figure)
