"""Files of adapters: written whole or not at all, and read without running what is in them."""

import io
import json
import os
import pickle
import reprlib
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

SHOWN = 4  # of many problems with one file
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 80


class AdapterFileError(ValueError):
    """A saved adapter cannot be used; the message says which file, why, and what to do."""


def shown(value: object) -> str:
    """A value out of a file, as a message may quote it: one short line of printable text."""
    return _REPR.repr(value)


def write_files(folder: str | os.PathLike, contents: Mapping[str, bytes]) -> Path:
    """Write files beside their places, then move them there: earlier ones stay whole until then.

    Returns:
        the folder, made if need be; `~` is the home folder.

    Raises:
        OSError: the folder cannot be written (disk full, read-only); earlier files are intact.
    """
    folder = Path(os.path.expanduser(folder))
    folder.mkdir(parents=True, exist_ok=True)
    for file in contents:
        if (folder / file).is_dir():
            raise IsADirectoryError(f"{folder / file} is a folder. Expected to write a file there.")
    with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as unfinished:
        for file, content in contents.items():
            with open(Path(unfinished, file), "wb") as out:
                out.write(content)
                out.flush()
                os.fsync(out.fileno())
        for file in contents:
            os.replace(Path(unfinished, file), folder / file)
    return folder


def check_exists(path: Path) -> None:
    """Raise FileNotFoundError unless there is such a file."""
    if not path.is_file():
        raise FileNotFoundError(f"no adapter in {path.parent}: {path.name} is missing.")


def as_pickle(content: dict) -> bytes:
    """The content of a file of `torch.save`."""
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def as_json(content: dict) -> bytes:
    """The content of a file of settings."""
    return (json.dumps(content, indent=2) + "\n").encode()


def read_json(path: Path, writer: str) -> dict:
    """The settings in a JSON file; `writer` names in errors who should have written it."""
    check_exists(path)
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(settings, dict):
            raise ValueError(f"expected an object, got {type(settings).__name__}")
    except (ValueError, RecursionError) as error:
        raise not_settings(path, writer, error) from error
    return settings


def not_settings(path: Path, writer: str, error: Exception) -> AdapterFileError:
    """The error of a settings file that is something else, or broken."""
    return AdapterFileError(
        f"{path} is not the settings file of an adapter saved by {writer}: {error!r:.300}."
    )


def check_made_for(
    folder: Path, saved: Mapping[str, object], here: Mapping[str, object], what: str = "base model"
) -> None:
    """Raise AdapterFileError unless saved settings are those that an adapter would have here."""
    if different := [name for name in here if saved.get(name) != here[name]]:
        listed = (f"{n} {shown(saved.get(n))}, here it is {here[n]!r}" for n in different)
        raise AdapterFileError(
            f"{folder} was made for another {what}: {', '.join(listed)}. Take the one it was "
            "trained with."
        )


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, by name; AdapterFileError if it is no whole one."""
    with _whole(path):
        return load_file(path)


def read_metadata(path: Path) -> dict[str, str]:
    """The texts that a safetensors file holds besides its tensors."""
    with _whole(path), safe_open(path, "pt") as file:
        return file.metadata() or {}


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    check_exists(path)
    try:
        yield
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise _corrupt(path, error) from error


def read_pickled(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that `torch.save` wrote, alone or under "model"; no code in it is run.

    Raises:
        FileNotFoundError: there is no such file.
        AdapterFileError: it is no such file, is broken, or holds anything but plain CPU tensors.
    """
    check_exists(path)
    try:
        with zipfile.ZipFile(path) as content:
            # What torch.save writes is not compressed; a small file that unpacks to a huge one is.
            packed = [i.filename for i in content.infolist() if i.compress_type]
        if packed:
            raise ValueError(f"{shown(packed[0])} in it is compressed")
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's own words advise to open it nevertheless
        raise AdapterFileError(
            f"{path} is corrupt, or holds more than numbers, which could run code when it is "
            "opened. It was not opened. Ask for a file with nothing but tensors in it."
        ) from error
    except Exception as error:  # broken bytes can fail anywhere: zipfile, torch and pickle beneath
        raise _corrupt(path, error) from error
    saved = saved.get("model", saved) if isinstance(saved, Mapping) else saved
    if not isinstance(saved, Mapping) or not all(
        isinstance(name, str)
        and type(tensor) in (Tensor, torch.nn.Parameter)
        and tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        for name, tensor in saved.items()
    ):
        raise AdapterFileError(f"{path} holds something else than tensors by name.")
    return {name: tensor.detach() for name, tensor in saved.items()}


def _corrupt(path: Path, error: Exception) -> AdapterFileError:
    reason = f"{type(error).__name__}: {shown(str(error))}"
    return AdapterFileError(
        f"{path} is corrupt or was cut short ({reason}). Save or download the adapter again."
    )


FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def check_tensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    dtypes: tuple[torch.dtype, ...] = (torch.float32,),
) -> None:
    """Raise AdapterFileError unless these are exactly the tensors that are expected, and finite."""
    problems = [f"{key} is missing" for key in shapes if key not in tensors]
    problems += [f"{shown(key)} does not belong there" for key in tensors if key not in shapes]
    for key in shapes.keys() & tensors.keys():
        tensor = tensors[key]
        if tuple(tensor.shape) != shapes[key]:
            problems.append(f"{key} is {tuple(tensor.shape)}, expected {shapes[key]}")
        elif tensor.dtype not in dtypes:
            problems.append(f"{key} is {tensor.dtype}, expected {dtypes[0]}")
        elif not tensor.float().isfinite().all():
            problems.append(f"{key} holds NaN or infinity")
    if problems:
        listed = "; ".join(sorted(problems)[:SHOWN]) + ("; ..." if len(problems) > SHOWN else "")
        raise AdapterFileError(f"{path} does not fit its settings or this model: {listed}.")
