"""The files of an adapter, how they are fetched from the hub, and the base model they name.

A fetched adapter is data. Only the files named in `FILES` are downloaded, no code of a repository
is run, and a base model's name out of one has to be an id of the hub, never a path.
"""

import os
from pathlib import Path

from transformers import PreTrainedModel

from llama_adapter_edu.base_models.course_llama import CONVERTED
from llama_adapter_edu.base_models.sources import HUB_REPOSITORY, ORIGINAL
from llama_adapter_edu.hub_names import check_hub_id, hub_errors, local_path, quiet

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
OLD_WEIGHTS_FILE = "adapter_model.bin"
LITGPT_FILE, LIT_LLAMA_FILE = "lit_model.pth.adapter", "lit-llama-adapter-finetuned.pth"
FILES = (CONFIG_FILE, WEIGHTS_FILE, OLD_WEIGHTS_FILE, LITGPT_FILE, LIT_LLAMA_FILE)


def download_adapter(
    name: str, revision: str | None = None, cache_dir: str | os.PathLike | None = None
) -> Path:
    """Fetch an adapter from the hub into its cache, from where it loads without a network later.

    Args:
        name: "owner/name".
        revision: a branch, tag or commit; a commit's hash always gives the same files.

    Returns:
        the folder, for `load_adapter`.

    Raises:
        ValueError: malformed id.
        FileNotFoundError: no such repository or revision that you may see, or no adapter in it.
        PermissionError: its conditions were not accepted.
        ConnectionError: it is not in the cache, and the hub does not answer.
    """
    from huggingface_hub import snapshot_download

    check_hub_id(name)
    with quiet(), hub_errors(name, "adapter", "pass a folder that exists"):
        folder = snapshot_download(
            name, revision=revision, cache_dir=cache_dir, allow_patterns=list(FILES)
        )
    if not any(Path(folder, file).exists() for file in FILES):
        raise FileNotFoundError(f"{name} holds no adapter: none of {', '.join(FILES)} is there.")
    return Path(folder)


def adapter_folder(source: str | os.PathLike) -> Path:
    """Where an adapter is on this computer, fetched from the hub if `source` is an id of it."""
    path = local_path(source)
    return download_adapter(os.fspath(source)) if path is None else path


def base_name(model: PreTrainedModel) -> str | None:
    """The base model's id on the hub; None if it is not known. Never a path of this computer."""
    path = str(model.config._name_or_path or "")
    if Path(path).name == CONVERTED:
        return HUB_REPOSITORY  # the course's Llama
    try:
        return path if local_path(path) is None else None
    except ValueError:
        return None


def openable(base_model: str | None) -> str | None:
    """The id by which transformers and PEFT open a base model.

    The course's Llama is made from a GGUF file, and its repository holds nothing else.
    """
    return ORIGINAL if base_model == HUB_REPOSITORY else base_model


def exact_base(base_model: str | None) -> dict[str, str]:
    """What `from_pretrained` needs to know besides the openable id, for the weights' metadata."""
    return {"base_model": base_model} if base_model == HUB_REPOSITORY else {}
