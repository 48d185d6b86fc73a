"""Adapt a Llama to rows of your own.

    python examples/own_data.py my_rows.jsonl --output runs/mine
    python examples/own_data.py my_rows.jsonl --model HuggingFaceTB/SmolLM2-360M-Instruct

Each line of the file is a row in Alpaca's form; "input" may be left out:

    {"instruction": "Which floor is the library on?", "input": "", "output": "The second."}

A tenth of the rows is kept back. Their answers are printed at the end, beside the expected ones.
"""

import argparse
from collections.abc import Sequence

from llama_adapter_edu import (
    AdaptionPromptConfig,
    TrainingConfig,
    add_adaption_prompts,
    encode_dataset,
    finetune,
    generate_answers,
    load_instructions,
    load_llama,
    parameter_report,
    save_adapter,
)
from llama_adapter_edu.data.evaluate import exact_match, longest_answer


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    parts = load_instructions(options.rows).train_test_split(test_size=0.1, seed=0)
    model, tokenizer = load_llama(options.model)
    layers = options.adapter_layers or model.config.num_hidden_layers
    add_adaption_prompts(model, AdaptionPromptConfig(10, layers, gate=options.gate))

    # A run that was stopped goes on when the same line is typed again.
    checkpoints = f"{options.output}/checkpoints"
    training = TrainingConfig(options.steps, options.batch_size)
    rows = encode_dataset(parts["train"], tokenizer)
    history = finetune(model, tokenizer, rows, training, resume_folder=checkpoints)
    save_adapter(model, options.output)

    test = parts["test"]
    longest = longest_answer(test, tokenizer)
    answers = generate_answers(model, tokenizer, test, max_new_tokens=longest)
    for row, answer in zip(test.select(range(min(5, len(test)))), answers, strict=False):
        print(f"{row['instruction']}\n  answer    {answer}\n  expected  {row['output']}")
    print(f"exact match {exact_match(answers, test['output']):.1%} of {len(test)} unseen rows")
    print(f"loss {history.losses[0]:.2f} -> {history.losses[-1]:.2f}; {parameter_report(model)}")
    print(f"Talk to it: python -m llama_adapter_edu chat --adapter {options.output}")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", help="a .jsonl or .json file, or a data set's id on the hub")
    parser.add_argument("--model", help="a hub id or a folder; default: the course's Llama")
    parser.add_argument("--output", default="runs/own-data", help="the adapter's folder")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--adapter-layers", type=int, help="topmost layers; default: all")
    what = "per_layer is what other libraries can store"
    parser.add_argument("--gate", default="per_head", choices=("per_head", "per_layer"), help=what)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
