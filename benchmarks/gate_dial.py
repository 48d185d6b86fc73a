"""The stops of the gate dial: the demo's adapter with its gates turned, on unseen home commands.

    python -m llama_adapter_edu finetune    # trains the adapter, runs/home-commands
    python -m benchmarks.gate_dial          # measures; a second call does what is missing

One control is turned at a time: the openings of all heads, of a third of the layers, or of a single
head, which is switched off. Everything else stays as it was trained.
"""

import argparse
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from benchmarks.measure import conditions
from llama_adapter_edu import gate_openings, load_adapter, load_llama
from llama_adapter_edu.course.figures.turned import Reading, read, scores, thirds, turned_gates
from llama_adapter_edu.course.tasks.home_commands import home_commands
from llama_adapter_edu.data.evaluate import expected_answers

OUTPUT = Path(__file__).resolve().parents[1] / "llama_adapter_edu/course/results/gate_dial.json"
ROWS = 6
TRAINING = "steps", "batch_size", "learning_rate", "seed", "final_loss"
ALL = (-1, -0.75, -0.5, -0.25, 0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.35)
ALL += (1.5, 1.75, 2)
THIRD = (-1, 0, 0.5, 1, 1.5, 2)


def settings(n_layers: int, n_heads: int) -> Iterator[tuple[str, dict[str, Any], Tensor]]:
    """Every stop: the name of its control, what tells it from the control's others, the factors."""
    for factor in ALL:
        yield "all gates", {"factor": factor}, torch.full((n_layers, n_heads), float(factor))
    for part in thirds(n_layers):
        for factor in THIRD:
            factors = torch.ones(n_layers, n_heads)
            factors[part] = factor
            yield f"layers {part[0]}–{part[-1]}", {"factor": factor}, factors
    for layer in range(n_layers):
        for head in range(n_heads):
            factors = torch.ones(n_layers, n_heads)
            factors[layer, head] = 0
            yield "single heads", {"factor": 0, "layer": layer, "head": head}, factors


class Given(nn.Module):
    """In place of the embedding: the same hidden states (b s m), whatever the tokens are."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states

    def forward(self, _: Tensor) -> Tensor:
        return self.states


def states_before(model: PreTrainedModel, tokenizer: Any, rows: list) -> list[Tensor]:
    """The hidden states that come into each layer of the trained model."""
    states: list[Tensor] = []
    hooks = [
        layer.register_forward_pre_hook(lambda _, inputs: states.append(inputs[0]))
        for layer in model.model.layers
    ]
    scores(model, tokenizer, rows)
    for hook in hooks:
        hook.remove()
    return states


def read_from(layer: int, states: Tensor, model: PreTrainedModel, *read_what: Any) -> Reading:
    """`read` where nothing below a layer differs from the run that `states` come from.

    The layers below are left out where one forward pass says all.
    """
    decoder = model.model
    layers, embedding = decoder.layers, decoder.embed_tokens
    decoder.layers, decoder.embed_tokens = layers[layer:], Given(states)
    try:
        loss, right, next_tokens = scores(model, *read_what)
    finally:
        decoder.layers, decoder.embed_tokens = layers, embedding
    if not all(right):
        return read(model, *read_what)
    return Reading(loss, expected_answers(read_what[-1]), next_tokens)


class Stops:
    """The stops so far, in a file that is whole at every moment."""

    def __init__(self, path: Path, head: dict[str, Any]) -> None:
        self.path = path
        self.content = {**head, "answers": [], "tokens": [], "stops": {}}
        if path.exists():
            found = json.loads(path.read_text(encoding="utf-8"))
            if any(found[key] != head[key] for key in head):
                raise SystemExit(f"{path} has stops under other conditions: take another --output.")
            self.content = found

    def has(self, control: str, which: dict[str, Any]) -> bool:
        return any(which.items() <= stop.items() for stop in self.content["stops"].get(control, []))

    def keep(self, control: str, which: dict[str, Any], reading: Reading) -> None:
        answers = [self._number("answers", answer) for answer in reading.answers]
        following = [self._flat(row) for row in reading.next_tokens]
        loss = float(f"{reading.loss:.3g}")
        stop = {**which, "loss": loss, "answers": answers, "next": following}
        self.content["stops"].setdefault(control, []).append(stop)
        unfinished = self.path.with_suffix(".unfinished")
        unfinished.write_text(written(self.content), encoding="utf-8")
        os.replace(unfinished, self.path)

    def _flat(self, tokens: list[tuple[str, float]]) -> list[int]:
        pairs = ((self._number("tokens", text), round(1000 * chance)) for text, chance in tokens)
        return [number for pair in pairs for number in pair]

    def _number(self, table: str, text: str) -> int:
        texts = self.content[table]
        if text not in texts:
            texts.append(text)
        return texts.index(text)


def written(content: dict[str, Any]) -> str:
    """JSON with a line for each stop."""
    *others, _ = content.items()
    lines = [f" {_json(key)}: {_json(value)}" for key, value in others]
    controls = [
        f"  {_json(control)}: [\n   "
        + ",\n   ".join(json.dumps(stop, separators=(",", ":")) for stop in stops)
        + "\n  ]"
        for control, stops in content["stops"].items()
    ]
    inside = ",\n".join(controls)
    return "{\n" + ",\n".join(lines) + ',\n "stops": {\n' + inside + "\n }\n}\n"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--adapter", default="runs/home-commands", help="folder of the demo's run")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--model", help="another base than the course's Llama")
    options = parser.parse_args(arguments)
    model, tokenizer = load_llama(options.model) if options.model else load_llama()
    load_adapter(model, options.adapter)
    rows = home_commands("test", ROWS, seed=0).to_list()
    openings = gate_openings(model)
    head = {
        "conditions": conditions(model.device) | training_of(Path(options.adapter)),
        "openings": [[round(float(opening), 3) for opening in layer] for layer in openings],
        "rows": [{key: row[key] for key in ("instruction", "output")} for row in rows],
    }
    stops = Stops(options.output, head)
    states = states_before(model, tokenizer, rows)
    for control, which, factors in tqdm(list(settings(*openings.shape)), unit="stop"):
        if not stops.has(control, which):
            layer = which.get("layer", 0)
            with turned_gates(model, factors):
                reading = read_from(layer, states[layer], model, tokenizer, rows)
            stops.keep(control, which, reading)


def training_of(folder: Path) -> dict[str, Any]:
    """What the demo noted of the training that made the adapter: TRAINING of its results."""
    noted = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    return {f"training_{name}": noted[name] for name in TRAINING}


if __name__ == "__main__":
    main()
