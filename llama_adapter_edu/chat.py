"""`python -m llama_adapter_edu chat`: talk to the base model or to saved adapters.

Each line is a conversation of its own, as in the training of an adapter.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TextStreamer

from llama_adapter_edu.adapters.choice import use_adapter
from llama_adapter_edu.base_models.load import load_llama
from llama_adapter_edu.data.encoding import encode_prompt
from llama_adapter_edu.data.evaluate import ending_tokens
from llama_adapter_edu.files.save_load import load_adapter


def chat(
    adapter: Sequence[str], max_new_tokens: int, model: str | None = None, cpu: bool = False
) -> int:
    """Answer lines from the keyboard until an empty one, `/quit` or the end of the input.

    `/use NAME` changes who answers: "base", or an adapter by its folder's name, with a number
    behind it where that name is taken. Returns 0.

    Raises:
        ValueError, OSError: the model or an adapter cannot be loaded.
    """
    if max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens must be at least 1, got {max_new_tokens}.")
    llama, tokenizer = load_llama(model, device=Accelerator(cpu=cpu).device)
    # A folder's name may be one that an adapter cannot have, such as "base", "v1.2" or "pop".
    adapters: dict[str, str | None] = {"base": None}
    for number, folder in enumerate(adapter, start=1):
        name = Path(os.path.expanduser(folder)).resolve().name
        while name in adapters:
            name = f"{name}-{number}"
        adapters[name] = f"adapter-{number}"
        load_adapter(llama, folder, adapters[name])
    *_, speaker = adapters
    print(f"Type a line and Enter. `/use NAME` changes who answers: {', '.join(adapters)}.")
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
            command, _, name = line.partition(" ")
            if command == "/use" and name.strip() in adapters:
                speaker = name.strip()
            else:
                print(f"Not understood: {line}. Try /use {' or /use '.join(adapters)}, or /quit.")
            continue
        answer(llama, tokenizer, line, adapters[speaker], max_new_tokens)


def answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    line: str,
    adapter_name: str | None,
    max_new_tokens: int,
) -> None:
    """Print the greedy answer of an adapter, or of the base model if None, token by token."""
    ids = torch.tensor([encode_prompt(tokenizer, line)], device=model.device)
    with torch.no_grad(), use_adapter(model, adapter_name):
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=ending_tokens(model, tokenizer),
            streamer=TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True),
        )
