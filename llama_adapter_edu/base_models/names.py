"""What a model's name means, a folder or an id of the hub, and what is wrong with it.

Loading can fail deep inside transformers, after minutes, in words that name neither the cause nor
the remedy. The questions asked here come first, cost little, and have answers one can act on.
"""

import json
import os
from pathlib import Path

from llama_adapter_edu.hub_names import hub_errors, local_path, why_local

INDEX = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")


def check_model_name(name: str | os.PathLike, cache_dir: str | os.PathLike | None = None) -> bool:
    """Whether `name` can be loaded without the network; raises when it cannot be loaded at all.

    Raises ValueError for a name that is neither a path nor an id of the hub, FileNotFoundError for
    a folder, file or repository that is not there, PermissionError for a repository that needs a
    login, ConnectionError without network, OSError for weights that are only pickles.
    """
    path = local_path(name, bare_id=True)
    if path is None:
        return _check_hub(os.fspath(name), cache_dir)
    if not path.exists():
        raise FileNotFoundError(
            f"There is no folder {name} (looked from {Path.cwd()}).{why_local(path)} Expected a "
            "model's folder, or its id on the Hugging Face hub, as in 'owner/name'."
        )
    _check_folder(path)
    return True


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is a file. Expected the folder of a model.")
    files = {path.name for path in folder.iterdir()}
    _refuse_adapter(str(folder), files)
    if "config.json" in files:
        _refuse_pickles(str(folder), files)
        if "adapter_config.json" in files:  # transformers would try to load both
            raise FileExistsError(
                f"{folder} holds a model and an adapter. Move adapter_config.json and the "
                "adapter's weights to a folder of their own."
            )
    weights = {"model.safetensors"}
    if INDEX in files:
        try:
            weights = {*json.loads((folder / INDEX).read_text("utf-8"))["weight_map"].values()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise OSError(f"{folder / INDEX} is broken. Save the model again.") from error
    missing = sorted(({"config.json"} | weights) - files)
    if not files & {"tokenizer.json", "tokenizer.model", "vocab.json"}:
        missing.append("tokenizer.json")
    if missing:
        raise FileNotFoundError(
            f"The folder {folder} is not a whole model. Missing: {', '.join(missing)}. "
            "model.save_pretrained(folder) and tokenizer.save_pretrained(folder) write all of it."
        )


def _refuse_adapter(name: str, files: set[str]) -> None:
    if "adapter_config.json" in files and "config.json" not in files:
        raise FileNotFoundError(
            f"{name} holds an adapter, not a model. Load the model it was trained on, then call "
            f"load_adapter(model, {name!r}); or from_pretrained({name!r}), which does both."
        )


def _refuse_pickles(name: str, files: set[str]) -> None:
    pickles = sorted(file for file in files if file.endswith(PICKLES))
    if pickles and not any(file.endswith(".safetensors") for file in files):
        raise OSError(
            f"{name} has its weights only as {pickles[0]}, a pickle, which can run code when it "
            "is opened. Expected *.safetensors files. Choose a model that has them, or, if you "
            "trust this one, load it with transformers and call model.save_pretrained(folder)."
        )


def _check_hub(name: str, cache_dir: str | os.PathLike | None) -> bool:
    from huggingface_hub import hf_hub_download, model_info, try_to_load_from_cache

    instead = "pass the folder of a model. load_llama() without a name needs no hub"
    try:
        with hub_errors(name, "model", instead):
            files = {file.rfilename for file in model_info(name).siblings}
            if "config.json" in files:  # else it may be an adapter
                hf_hub_download(name, "config.json", cache_dir=cache_dir)
    except ConnectionError:
        if isinstance(try_to_load_from_cache(name, "config.json", cache_dir=cache_dir), str):
            return True
        raise
    _refuse_adapter(name, files)
    if "config.json" not in files:
        raise FileNotFoundError(
            f"The repository {name} has no config.json: not a transformers model."
        )
    _refuse_pickles(name, files)
    return False
