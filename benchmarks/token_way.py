"""The numbers of one token's way through one head, for lesson 00's picture that moves.

    python -m llama_adapter_edu finetune    # trains the adapter, runs/home-commands
    python -m benchmarks.token_way          # a few seconds

The head is the one whose gate is opened furthest.
"""

import argparse
import json
from pathlib import Path

from benchmarks.gate_dial import training_of
from benchmarks.measure import conditions
from llama_adapter_edu import gate_openings, load_adapter, load_llama
from llama_adapter_edu.course.figures.way import way_of_token
from llama_adapter_edu.data.encoding import format_prompt

OUTPUT = Path(__file__).resolve().parents[1] / "llama_adapter_edu/course/results/token_way.json"
COMMAND = "Make it 80% for the lights of the upstairs office"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--adapter", default="runs/home-commands", help="folder of the demo's run")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args(arguments)
    model, tokenizer = load_llama()
    load_adapter(model, options.adapter)
    openings = gate_openings(model)
    layer, head = divmod(int(openings.abs().argmax()), openings.shape[1])
    way = way_of_token(model, tokenizer, format_prompt(tokenizer, COMMAND), layer, head)
    noted = conditions(model.device) | training_of(Path(options.adapter))
    content = {"conditions": noted, "command": COMMAND, **way}
    text = json.dumps(content, indent=1, ensure_ascii=False)
    options.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
