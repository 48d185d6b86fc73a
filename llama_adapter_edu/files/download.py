"""The files of an adapter, how they are fetched from the hub, and the base model they name.

A fetched adapter is data. Only the files named in `FILES` are downloaded, no code of a repository
is run, and a base model's name out of one has to be an id of the hub, never a path.
"""

import os
from pathlib import Path

from safetensors.torch import save
from torch import Tensor
from transformers import PreTrainedModel

from llama_adapter_edu.adapters.decoder import unwrapped
from llama_adapter_edu.base_models.course_llama import CONVERTED
from llama_adapter_edu.base_models.sources import HUB_REPOSITORY, ORIGINAL
from llama_adapter_edu.files.safe_files import AdapterFileError, as_json
from llama_adapter_edu.hub_names import check_hub_id, hub_errors, local_path, quiet, why_local

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
OLD_WEIGHTS_FILE = "adapter_model.bin"
LITGPT_FILE, LIT_LLAMA_FILE = "lit_model.pth.adapter", "lit-llama-adapter-finetuned.pth"
LITGPT_V2_FILE = "lit_model.pth.adapter_v2"
LIT_FILES = LITGPT_FILE, LITGPT_V2_FILE, LIT_LLAMA_FILE
VISION_FILES = "vision_config.json", "vision_model.safetensors"
FILES = (CONFIG_FILE, WEIGHTS_FILE, OLD_WEIGHTS_FILE, *LIT_FILES, *VISION_FILES)


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
        FileNotFoundError: there is no adapter in it. Others as `hub_errors`.
    """
    from huggingface_hub import snapshot_download

    check_hub_id(name)
    cache_dir = os.path.expanduser(cache_dir) if cache_dir else None
    with quiet(), hub_errors(name, "adapter", "pass a folder that exists"):
        folder = snapshot_download(
            name, revision=revision, cache_dir=cache_dir, allow_patterns=list(FILES)
        )
    if not any(Path(folder, file).exists() for file in FILES):
        raise FileNotFoundError(f"{name} holds no adapter: none of {', '.join(FILES)} is there.")
    return Path(folder)


def adapter_file(source: str | os.PathLike) -> Path:
    """The file that tells an adapter's format: its settings, or a `.pth` file of tensors.

    Args:
        source: a folder, one of the files in it, or an id of the hub: it is fetched then.

    Raises:
        FileNotFoundError: there is nothing at that place.
        AdapterFileError: a folder holds several adapters, or a file lies apart from its settings.
        Others as `download_adapter`.
    """
    path = local_path(source) or download_adapter(os.fspath(source))
    if not path.exists():
        raise FileNotFoundError(
            f"no adapter in {path}: there is no such file or folder (looked from {Path.cwd()})."
            + why_local(path)
        )
    if path.is_dir():
        kinds = CONFIG_FILE, *LIT_FILES
        found = [name for name in kinds if (path / name).exists()] or [CONFIG_FILE]
        if len(found) > 1:
            raise AdapterFileError(
                f"{path} holds several adapters, {' and '.join(found)}. Pass one of these files."
            )
        return path / found[0]
    if path.name in (WEIGHTS_FILE, OLD_WEIGHTS_FILE):
        return path.with_name(CONFIG_FILE)
    if path.suffix == ".safetensors":
        raise AdapterFileError(
            f"{path} says nothing of its settings. Pass a folder with {WEIGHTS_FILE} and "
            f"{CONFIG_FILE} in it."
        )
    return path


def base_name(model: PreTrainedModel) -> str | None:
    """The base model's id on the hub; None if it is not known. Never a path of this computer."""
    path = str(unwrapped(model).config._name_or_path or "")
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


def two_files(
    config: dict, tensors: dict[str, Tensor], base_model: str | None, **metadata: str
) -> dict[str, bytes]:
    """The content of an adapter's settings and weights, by file name."""
    if openable(base_model) != base_model:
        metadata["base_model"] = base_model  # the settings say the other
    return {
        WEIGHTS_FILE: save(tensors, {"format": "pt", **metadata}),
        CONFIG_FILE: as_json(config),
    }
