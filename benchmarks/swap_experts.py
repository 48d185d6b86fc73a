"""Two experts, and the keys of one with the values of the other: whose answer comes?

    python -m benchmarks.swap_experts       # 3 seeds: about an hour on one core of a CPU

Home commands and telegrams are learnt as two adapters of one Llama. Then every mix of keys and
values is asked for both kinds of answer. The gates go with the values: they multiply them.
arXiv 2508.17032 finds in trained key/value caches that keys route and values hold what was learnt.
"""

import argparse
import json
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.measure import conditions
from llama_adapter_edu import (
    AdaptionPromptConfig,
    TrainingConfig,
    add_adaption_prompts,
    encode_dataset,
    finetune,
    load_llama,
    use_adapter,
)
from llama_adapter_edu.adapters.decoder import attention_layers
from llama_adapter_edu.course.figures.turned import read
from llama_adapter_edu.course.tasks.home_commands import home_commands
from llama_adapter_edu.course.tasks.telegrams import style_score, telegrams

EXPERTS = {"commands": home_commands, "telegrams": telegrams}
MIXED = "mixed"
OUTPUT = Path(__file__).resolve().parents[1] / "llama_adapter_edu/course/results/swap_experts.json"


class Mixed(nn.Module):
    """Prompts whose keys come from one adapter, and whose values and gates from another.

    The layer makes keys and values of all prompts of both; each half of them is used once.
    """

    def __init__(self, keys_of: nn.Module, values_of: nn.Module) -> None:
        super().__init__()
        self.keys_of, self.values_of = keys_of, values_of

    @property
    def prompts(self) -> Float[Tensor, "p m"]:
        return torch.cat([self.keys_of.prompts, self.values_of.prompts])

    def gated_heads(self, key: Tensor, value: Tensor, n_heads: int) -> tuple[Tensor, Tensor]:
        p = len(self.keys_of.prompts)
        return self.values_of.gated_heads(key[..., :p, :], value[..., p:, :], n_heads)


def mix(model: PreTrainedModel, keys_of: str, values_of: str) -> None:
    """Make the adapter MIXED of two others; it must be there already."""
    for attention in attention_layers(model):
        prompts = attention.adaption_prompts
        prompts[MIXED] = Mixed(prompts[keys_of], prompts[values_of])


def learn(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    expert: str,
    training: TrainingConfig,
    adapter: AdaptionPromptConfig,
) -> float:
    """Train one expert; its final loss."""
    rows = EXPERTS[expert]("train", training.steps * training.batch_size, seed=training.seed)
    set_seed(training.seed)
    add_adaption_prompts(model, adapter, adapter_name=expert)
    encoded = encode_dataset(rows, tokenizer)
    return finetune(model, tokenizer, encoded, training, progress=False).losses[-1]


def look(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, n_rows: int) -> dict[str, Any]:
    """Losses of MIXED on both experts' rows, and in whose form it answers."""
    found: dict[str, Any] = {}
    for expert, rows_of in EXPERTS.items():
        rows = rows_of("test", n_rows, seed=0).to_list()
        with use_adapter(model, MIXED), torch.no_grad():
            reading = read(model, tokenizer, rows, max_new_tokens=20)
        found[f"asked for {expert}"] = {
            "loss": round(reading.loss, 4),
            "right": [a == row["output"] for a, row in zip(reading.answers, rows, strict=True)],
            "json": sum(answer.startswith('{"') for answer in reading.answers) / n_rows,
            "telegram": style_score(reading.answers),
            "answers": reading.answers,
        }
    return found


def one_seed(seed: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    model, tokenizer = load_llama(options.model) if options.model else load_llama()
    adapter = AdaptionPromptConfig(
        adapter_layers=model.config.num_hidden_layers, init_std=options.init_std
    )
    training = TrainingConfig(options.steps, options.batch_size, seed=seed)
    losses = {expert: learn(model, tokenizer, expert, training, adapter) for expert in EXPERTS}
    add_adaption_prompts(model, adapter, adapter_name=MIXED)
    records = []
    for keys_of, values_of in product(EXPERTS, EXPERTS):
        mix(model, keys_of, values_of)
        record = {"seed": seed, "keys": keys_of, "values": values_of}
        record |= look(model, tokenizer, options.rows)
        records.append({**record, "final_losses": losses, "training": asdict(training)})
        print(json.dumps(records[-1]), flush=True)
    return records


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=120, help="of each expert")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--init-std", type=float, default=0.3)
    parser.add_argument("--rows", type=int, default=20, help="of each kind, to ask with")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--model", help="another base than the course's Llama")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args(arguments)
    settings = {"init_std": options.init_std, "rows": options.rows}
    records: list[dict[str, Any]] = []
    for seed in options.seeds:
        records += one_seed(seed, options)
        content = {"conditions": conditions(torch.device("cpu")) | settings, "runs": records}
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        options.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
