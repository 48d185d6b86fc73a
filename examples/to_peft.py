"""Hand an adapter to PEFT, and see that it computes the same there.

    python examples/own_data.py my_rows.jsonl --gate per_layer --output runs/mine
    python examples/to_peft.py runs/mine runs/mine-peft

PEFT has one gate a layer and no tanh. So the adapter needs gate="per_layer"; what tanh makes of the
gate is stored. The new folder is opened with `PeftModel.from_pretrained(model, folder)`.
"""

import argparse
from collections.abc import Sequence

import torch
from peft import PeftModel

from llama_adapter_edu import load_adapter, load_llama, save_adapter

TEXT = "Make it 80% for the lights of the upstairs office"


def main(arguments: Sequence[str] | None = None) -> float:
    """Returns the largest difference of a logit, of which it prints what it means."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("adapter", help="a folder or hub id, in any format that is read here")
    parser.add_argument("output", help="the folder for PEFT")
    parser.add_argument("--model", help="the model it was trained on; default: the course's Llama")
    options = parser.parse_args(arguments)

    model, tokenizer = load_llama(options.model)
    load_adapter(model, options.adapter)
    save_adapter(model, options.output, format="peft")

    base, _ = load_llama(options.model)
    theirs = PeftModel.from_pretrained(base, options.output).eval()
    inputs = tokenizer(TEXT, return_tensors="pt")
    with torch.no_grad():
        ours, peft = model(**inputs).logits, theirs(**inputs).logits
    difference = (ours - peft).abs().max().item()
    print(f"written for PEFT: {options.output}")
    print(f"largest difference of a logit: {difference:.1e}, of {ours.abs().max().item():.0f}")
    return difference


if __name__ == "__main__":
    main()
