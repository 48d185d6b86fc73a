"""A Llama that sees digits: accuracy for each kind of question, over several seeds.

    python -m benchmarks.vision                                          # one GPU, 3 seeds
    python -m benchmarks.vision --device cpu --seeds 1 --steps 2 --output /tmp/vision.json

Trained and scored as in lesson 09, with more steps and all layers. No picture of the scores occurs
in training; "held_out" are pairs of a kind of question and a digit that no training picture has.
The JSON with hardware and versions is package data: lesson 09 shows it.
"""

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import sklearn
import torch
import transformers
from accelerate.utils import set_seed

from llama_adapter_edu import (
    AdaptionPromptConfig,
    TrainingConfig,
    add_adaption_prompts,
    add_vision,
    count_parameters,
    load_llama,
    remove_adapter,
)
from llama_adapter_edu.course.tasks.digits import accuracy, digit_pictures, questions_about
from llama_adapter_edu.course.tasks.digits_training import answer_words, train_digits
from llama_adapter_edu.vision.attach import vision_of
from llama_adapter_edu.vision.encoders import DigitEncoder

OUTPUT = Path(__file__).resolve().parents[1] / "llama_adapter_edu/course/results" / "vision.json"
ADAPTER = "digits"
NO_SETTINGS = ("output", "model", "seeds")  # "runs" says which seeds ran


def run(llama, tokenizer, settings: argparse.Namespace, seed: int) -> dict:
    """Train and score with one seed; the model is the bare one again afterwards."""
    set_seed(seed)
    config = AdaptionPromptConfig(settings.adapter_len, settings.adapter_layers)
    add_vision(add_adaption_prompts(llama, config, ADAPTER), DigitEncoder())
    trainable, _ = count_parameters(llama)
    training = TrainingConfig(
        settings.steps, settings.batch_size, settings.learning_rate, seed=seed, weight_decay=0.0
    )
    start = time.perf_counter()
    losses = train_digits(
        llama, tokenizer, training, vision_learning_rate=settings.vision_learning_rate
    )
    trained = time.perf_counter()
    images, digits = digit_pictures("test")
    scores = {}
    for name, held_out in (("seen_pairs", False), ("held_out_pairs", True)):
        questions = questions_about(digits, held_out=held_out)
        words = answer_words(llama, tokenizer, questions, images)
        scores[name] = accuracy(questions, words)
    del vision_of(llama)[ADAPTER]
    remove_adapter(llama, ADAPTER)
    return {
        "seed": seed,
        **scores,
        "trainable_parameters": trainable,
        "first_loss": losses[0],
        "last_loss": statistics.fmean(losses[-10:]),
        "train_seconds": round(trained - start, 1),
    }


def mean_scores(runs: list[dict]) -> dict[str, dict[str, float]]:
    """Mean over the seeds of each score."""
    return {
        pairs: {kind: statistics.fmean(one[pairs][kind] for one in runs) for kind in runs[0][pairs]}
        for pairs in ("seen_pairs", "held_out_pairs")
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--model", help="a model's id on the hub or its folder; the course's Llama")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-2)
    parser.add_argument("--vision-learning-rate", type=float, default=3e-3)
    parser.add_argument("--adapter-len", type=int, default=10)
    parser.add_argument("--adapter-layers", type=int, default=30)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    settings = parser.parse_args()

    llama, tokenizer = load_llama(settings.model, device=settings.device)
    settings.output.parent.mkdir(parents=True, exist_ok=True)
    runs = []
    for seed in range(settings.seeds):
        runs.append(run(llama, tokenizer, settings, seed))
        print(json.dumps(runs[-1]), flush=True)
        hardware = platform.machine()
        if llama.device.type == "cuda":
            hardware = torch.cuda.get_device_name()
        result = {
            "mean": mean_scores(runs),
            "runs": runs,
            "settings": {k: v for k, v in vars(settings).items() if k not in NO_SETTINGS},
            "hardware": hardware,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "scikit-learn": sklearn.__version__,
        }
        settings.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result["mean"], indent=2))


if __name__ == "__main__":
    main()
