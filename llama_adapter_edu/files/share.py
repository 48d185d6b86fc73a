"""Share adapters on the Hugging Face hub, and use shared ones.

push_to_hub(model, "you/home-commands", data="tatsu-lab/alpaca")     adapter and model card
model, tokenizer = from_pretrained("you/home-commands")              base model and adapter
load_adapter(model, "you/home-commands", "second")                   into a model you have
"""

import os
import tempfile
from pathlib import Path

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llama_adapter_edu.adapters.choice import active_adapter
from llama_adapter_edu.base_models.load import load_llama
from llama_adapter_edu.files.download import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    adapter_file,
    base_name,
    openable,
)
from llama_adapter_edu.files.formats.cartridge import CartridgeWeights
from llama_adapter_edu.files.safe_files import AdapterFileError, read_json, read_metadata
from llama_adapter_edu.files.save_load import load_adapter, read_out, save_adapter
from llama_adapter_edu.files.weights import AdapterWeights
from llama_adapter_edu.hub_names import check_hub_id, hub_errors


def push_to_hub(
    model: PreTrainedModel,
    repo_id: str,
    *,
    data: str,
    base_model: str | None = None,
    adapter_name: str | None = None,
    format: str = "llama_adapter_edu",
    license: str | None = None,
    private: bool | None = None,
) -> str:
    """Put one adapter, the active one if no name is given, on the hub with a model card.

    Args:
        repo_id: "owner/name". It is made if need be.
        data: what the adapter was trained on: a data set's id on the hub, or a sentence.
        base_model: the base model's id on the hub; not needed if it was loaded by it, nor for the
            course's Llama.
        format: as for `save_adapter`.
        license: the adapter's, as "apache-2.0".
        private: whether only you see it; the hub's own default if None.

    Returns:
        the address of what was uploaded.

    Raises:
        ValueError: a malformed id, `data` is empty, the base model is not known, or the format
            cannot hold the adapter. Nothing was uploaded.
        PermissionError: you are not logged in, or may not write there.
        ConnectionError: the hub does not answer.
    """
    from huggingface_hub import HfApi

    check_hub_id(repo_id)
    base_model = base_model or base_name(model)
    if base_model is None:
        raise ValueError(
            "which base model was this trained on? Pass base_model='owner/name', its id on the "
            "Hugging Face hub: without it nobody can use the adapter."
        )
    check_hub_id(base_model)
    if not isinstance(data, str) or not data.strip():
        raise ValueError("data should say what the adapter was trained on: an id or a sentence.")
    with tempfile.TemporaryDirectory() as folder:
        save_adapter(model, folder, adapter_name, format, base_model=base_model)
        weights = read_out(model, adapter_name or active_adapter(model))
        card = model_card(weights, repo_id, base_model, data, format, license)
        Path(folder, "README.md").write_text(card, encoding="utf-8")
        with hub_errors(repo_id, "adapter", writing=True):
            api = HfApi()
            api.create_repo(repo_id, private=private, exist_ok=True)
            done = api.upload_folder(repo_id=repo_id, folder_path=folder)
    return str(done.commit_url)


def _about(weights: AdapterWeights | CartridgeWeights) -> str:
    """What an adapter is, and how many numbers it holds."""
    if isinstance(weights, CartridgeWeights):
        tensors = [part for pair in weights.cache.values() for part in pair]
        tokens = weights.config.num_virtual_tokens
        what = (
            "A cartridge ([arXiv 2506.06266](https://arxiv.org/abs/2506.06266)): trained keys and\n"
            f"values of {tokens} tokens in all {len(weights.cache)} layers."
        )
    else:
        tensors = [*weights.prompts.values(), *weights.gates.values(), *weights.v2.values()]
        parts = [f"gated soft prompts for the\ntopmost {len(weights.prompts)} layers"]
        parts = parts if weights.prompts else []
        parts += ["bias and scale of all linear layers"] if weights.config.bias_scale else []
        parts += ["norms of its own"] if weights.config.norms else []
        version = "2304.15010" if weights.v2 else "2303.16199"
        name = "LLaMA-Adapter V2" if weights.v2 else "LLaMA-Adapter"
        link = f"[arXiv {version}](https://arxiv.org/abs/{version})"
        what = f"A {name} ({link}): {', '.join(parts)}."
    numbers = sum(tensor.numel() for tensor in tensors)
    return f"{what} It holds {numbers:,} numbers and nothing of its base model."


def model_card(
    weights: AdapterWeights | CartridgeWeights,
    repo_id: str,
    base_model: str,
    data: str,
    format: str,
    license: str | None,
) -> str:
    """The README of an adapter's repository: base model, settings, data, and how to use it."""
    from huggingface_hub import ModelCardData

    try:
        check_hub_id(data)
        datasets, data = [data], f"[{data}](https://huggingface.co/datasets/{data})"
    except ValueError:
        datasets = None
    base = openable(base_model)
    head = ModelCardData(
        base_model=base,
        datasets=datasets,
        library_name="peft" if format == "peft" else "llama-adapter-edu",
        license=license,
        tags=["llama-adapter", "adaption-prompt"],
    )
    settings = weights.config.settings().items()
    rows = "\n".join(f"| `{name}` | {value} |" for name, value in settings)
    return f"""---
{head.to_yaml()}
---

# {repo_id.split("/")[1]}

{_about(weights)}

* Base model: [{base}](https://huggingface.co/{base})
* Data: {data.strip()}
* Files: in the format of {format}

```python
from llama_adapter_edu import load_adapter, load_llama

model, tokenizer = load_llama("{base_model}")
load_adapter(model, "{repo_id}")
```

| setting | value |
|---|---|
{rows}
"""


def from_pretrained(
    source: str | os.PathLike,
    adapter_name: str = "default",
    *,
    encoder: nn.Module | None = None,
    **options,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A saved adapter together with the base model it names: the model, adapted, and its tokenizer.

    Args:
        source, encoder: as for `load_adapter`.
        options: for `load_llama`, as `dtype=torch.bfloat16, device="cuda"`.

    Raises:
        AdapterFileError: the adapter does not name its base model, or as `load_adapter`.
        Other errors as `load_adapter` and `load_llama`.
    """
    file = adapter_file(source)
    model, tokenizer = load_llama(_base_of(file), **options)
    return load_adapter(model, file, adapter_name, encoder=encoder), tokenizer


def _base_of(file: Path) -> str:
    """The hub id of the base model that an adapter's settings name. A path is not accepted."""
    settings = read_json(file, "save_adapter") if file.name == CONFIG_FILE else {}
    name = settings.get("base_model") or settings.get("base_model_name_or_path")
    try:
        check_hub_id(name)
    except ValueError as error:
        raise AdapterFileError(
            f"{file} does not name its base model by a hub id, but by {name!r:.80}. Load the base "
            "with load_llama, then call load_adapter(model, folder)."
        ) from error
    weights = file.with_name(WEIGHTS_FILE)
    exact = read_metadata(weights).get("base_model") if weights.is_file() else None
    return exact if exact and openable(exact) == name else name
