"""What an id of the Hugging Face hub is, and how an adapter is fetched from there.

A fetched adapter is data. Only the files named in `FILES` are downloaded, no code of a repository
is run, and a base model's name out of one has to be an id of the hub, never a path.
"""

import os
from pathlib import Path

from transformers import PreTrainedModel

from llama_adapter_edu.base_models.course_llama import CONVERTED
from llama_adapter_edu.base_models.sources import HUB_REPOSITORY
from llama_adapter_edu.hub_names import check_hub_id, hub_errors, local_path, quiet

FILES = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "adapter_model.bin",
    "lit_model.pth.adapter",
)


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
