"""What a model's name means, a folder or an id of the hub, and what is wrong with it.

Loading can fail deep inside transformers, after minutes, in words that name neither the cause nor
the remedy. The questions asked here come first, cost little, and have answers one can act on.
"""

import json
import os
from pathlib import Path

from llama_adapter_edu.hub_names import LOG_IN

PICKLES = (".bin", ".pt", ".pth", ".ckpt")


def check_model_name(name: str | os.PathLike, cache_dir: str | os.PathLike | None = None) -> bool:
    """Whether `name` can be loaded without the network; raises when it cannot be loaded at all.

    Raises ValueError for a name that is neither a path nor an id of the hub, FileNotFoundError for
    a folder, file or repository that is not there, PermissionError for a repository that needs a
    login, ConnectionError without network, OSError for weights that are only pickles.
    """
    text = os.fspath(name)
    if "\0" in text:
        raise _no_name(text)
    path = os.path.expanduser(text)
    if text and os.path.exists(path):
        _check_folder(Path(path))
        return True
    if isinstance(name, os.PathLike) or _looks_like_path(text):
        raise FileNotFoundError(
            f"There is no folder {text} (looked from {Path.cwd()}). Expected a model's folder, or "
            "its id on the Hugging Face hub, as in 'owner/name'."
        )
    return _check_hub(text, cache_dir)


def _no_name(text: str) -> ValueError:
    return ValueError(
        f"{text!r:.120} is not a model's name. Expected an id of the Hugging Face hub, 'owner/name'"
        " from letters, digits, '-', '_' and '.', or a folder that exists."
    )


def _looks_like_path(text: str) -> bool:
    return text.startswith((".", "~", "/")) or "\\" in text or text.count("/") > 1


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is a file. Expected the folder of a model.")
    files = {path.name for path in folder.iterdir()}
    if "adapter_config.json" in files and "config.json" not in files:
        raise FileNotFoundError(
            f"{folder} holds an adapter, not a model. Load the model it was trained on, then call "
            "load_adapter(model, folder); or from_pretrained(folder), which does both."
        )
    if "config.json" in files:
        _refuse_pickles(str(folder), files)
    weights = {"model.safetensors"}
    if "model.safetensors.index.json" in files:
        index = (folder / "model.safetensors.index.json").read_text(encoding="utf-8")
        weights = set(json.loads(index)["weight_map"].values())
    missing = sorted(({"config.json"} | weights) - files)
    if not files & {"tokenizer.json", "tokenizer.model", "vocab.json"}:
        missing.append("tokenizer.json")
    if missing:
        raise FileNotFoundError(
            f"The folder {folder} is not a whole model. Missing: {', '.join(missing)}. "
            "model.save_pretrained(folder) and tokenizer.save_pretrained(folder) write all of it."
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
    from huggingface_hub import errors, hf_hub_download, model_info, try_to_load_from_cache

    try:
        files = {file.rfilename for file in model_info(name).siblings}
    except errors.HFValidationError as error:
        raise _no_name(name) from error
    except errors.RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"There is no model {name!r} on the Hugging Face hub that you may see, and no folder "
            f"of this name. Check the spelling. If it is private, {LOG_IN}."
        ) from error
    except Exception as error:  # no network: the library beneath the hub decides on the type
        if isinstance(try_to_load_from_cache(name, "config.json", cache_dir=cache_dir), str):
            return True
        raise ConnectionError(
            f"{name!r} is not in this computer's cache, and the Hugging Face hub does not answer "
            f"({type(error).__name__}). Connect to the internet, or pass the folder of a model. "
            "load_llama() without a name needs no hub."
        ) from error
    if "adapter_config.json" in files and "config.json" not in files:
        raise FileNotFoundError(
            f"{name} holds an adapter, not a model. Load the model it was trained on, then call "
            f"load_adapter(model, {name!r}); or from_pretrained({name!r}), which does both."
        )
    if "config.json" not in files:
        raise FileNotFoundError(
            f"The repository {name} has no config.json: not a transformers model."
        )
    _refuse_pickles(name, files)
    try:
        hf_hub_download(name, "config.json", cache_dir=cache_dir)
    except errors.GatedRepoError as error:
        raise PermissionError(
            f"{name} is open only to those who accepted its licence. Accept it on "
            f"https://huggingface.co/{name}, then {LOG_IN}."
        ) from error
    return False
