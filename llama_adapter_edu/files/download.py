"""What an id of the Hugging Face hub is, and how an adapter is fetched from there.

A fetched adapter is data. Only the files named in `FILES` are downloaded, no code of a repository
is run, and a base model's name out of one has to be an id of the hub, never a path.
"""

import os
from pathlib import Path

from transformers import PreTrainedModel

from llama_adapter_edu.base_models.course_llama import CONVERTED
from llama_adapter_edu.base_models.sources import HUB_REPOSITORY
from llama_adapter_edu.hub_names import LOG_IN, check_hub_id, is_hub_id, quiet

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
    from huggingface_hub import errors, snapshot_download

    check_hub_id(name)
    try:
        with quiet():
            folder = snapshot_download(
                name, revision=revision, cache_dir=cache_dir, allow_patterns=list(FILES)
            )
    except errors.GatedRepoError as error:
        raise PermissionError(
            f"{name} is open only to those who accepted its conditions. Accept them on "
            f"https://huggingface.co/{name}, then {LOG_IN}."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"There is no {name!r} on the Hugging Face hub that you may see, and no folder of this "
            f"name here. Check the spelling. If it is private, {LOG_IN}."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise FileNotFoundError(f"{name} has no revision {revision!r} on the hub.") from error
    except Exception as error:  # no network: the library beneath the hub decides on the type
        raise ConnectionError(
            f"There is no folder {name!r} here (looked from {Path.cwd()}), it is not in the hub's "
            f"cache, and the Hugging Face hub does not answer ({type(error).__name__}). Check the "
            "spelling or connect to the internet."
        ) from error
    if not any(Path(folder, file).exists() for file in FILES):
        raise FileNotFoundError(f"{name} holds no adapter: none of {', '.join(FILES)} is there.")
    return Path(folder)


def base_name(model: PreTrainedModel) -> str | None:
    """The base model's id on the hub; None if it is not known. Never a path of this computer."""
    path = str(model.config._name_or_path or "")
    if Path(path).name == CONVERTED:
        return HUB_REPOSITORY  # the course's Llama
    try:
        return path if is_hub_id(path) else None
    except ValueError:
        return None
