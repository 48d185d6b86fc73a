"""`python -m llama_adapter_edu chat`: talk to the base model or to saved adapters.

Each line is a conversation of its own, as in the training of an adapter.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TextStreamer

from llama_adapter_edu.adapters.manage import adapter_configs, disable_adapter, set_adapter
from llama_adapter_edu.base_models.load import load_llama
from llama_adapter_edu.data.encoding import encode_prompt
from llama_adapter_edu.files.save_load import load_adapter

BASE = "base"


def chat(
    adapter: Sequence[str], max_new_tokens: int, model: str | None = None, cpu: bool = False
) -> int:
    """Answer lines from the keyboard until an empty one, `/quit` or the end of the input.

    `/use NAME` changes who answers: "base" or an adapter, named like its folder. Returns 0.

    Raises:
        ValueError, OSError: the model or an adapter cannot be loaded, or two adapters' folders
            have the same name.
    """
    if max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens must be at least 1, got {max_new_tokens}.")
    llama, tokenizer = load_llama(model, device=Accelerator(cpu=cpu).device)
    speaker = BASE
    for folder in adapter:
        speaker = Path(folder).resolve().name
        load_adapter(llama, folder, speaker)
    names = [BASE, *adapter_configs(llama)]
    print(f"Type a line and Enter. `/use NAME` changes who answers: {', '.join(names)}.")
    print("An empty line or `/quit` ends the chat.")
    while True:
        try:
            line = input(f"\n{speaker}> ").strip()
        except EOFError:
            print()
            return 0
        if line in ("", "/quit"):
            return 0
        if line.startswith("/"):
            word, _, name = line.partition(" ")
            if word == "/use" and name.strip() in names:
                speaker = name.strip()
            else:
                print(f"Not understood: {line}. Try /use {' or /use '.join(names)}, or /quit.")
            continue
        answer(llama, tokenizer, line, speaker, max_new_tokens)


def answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    line: str,
    speaker: str,
    max_new_tokens: int,
) -> None:
    """Print the greedy answer of one speaker, word by word."""
    if speaker != BASE:
        set_adapter(model, speaker)
    ids = torch.tensor([encode_prompt(tokenizer, line)], device=model.device)
    with torch.no_grad(), disable_adapter(model) if speaker == BASE else nullcontext():
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=max_new_tokens,
            streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True),
        )
