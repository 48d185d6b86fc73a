"""The state of a training run in files, bit for bit.

    state.safetensors   what trains (model.NAME), the optimiser's moments (optimizer.NUMBER.NAME),
                        the losses (float64) and the gates' openings so far
    state.json          settings, data and shapes of the run, and the SHA-256 of the other file
    adapter_config.json, adapter_model.safetensors        as from `save_adapter`, to load by itself

There are no pickles. Random states are not needed: each step draws its random numbers from the seed
and its own number. `resume.py` puts such a state into place.
"""

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from datasets import Dataset
from jaxtyping import Float
from safetensors.torch import load, save
from torch import Tensor, nn

from llama_adapter_edu.adapters.choice import active_adapter
from llama_adapter_edu.files.save_load import save_adapter

FORMAT = "llama_adapter_edu/run/1"
STATE, TENSORS = "state.json", "state.safetensors"


class ResumeError(ValueError):
    """A resume folder cannot be used; the message says why, and what to do."""


class BrokenStateError(ResumeError):
    """The files of a state are not what was written."""


@dataclass
class History:
    """What a run was like: one entry per step."""

    losses: list[float] = field(default_factory=list)
    gates: list[Float[Tensor, "layers h"]] = field(default_factory=list)


def dataset_fingerprint(dataset: Dataset) -> str:
    """Changes with the number of rows, their lengths, and the first and last row."""
    lengths = [len(ids) for ids in dataset["input_ids"]]
    return hashlib.sha256(repr((lengths, dataset[0], dataset[-1])).encode()).hexdigest()[:16]


def write_state(
    folder: Path,
    about: dict,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    history: History,
    accelerator: Accelerator,
) -> None:
    """Write the state into an empty folder.

    Raises:
        OSError: a file cannot be written.
    """
    tensors = {f"model.{name}": parameter for name, parameter in _trainable(model).items()}
    for number, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": tensor for name, tensor in moments.items()}
    tensors["losses"] = torch.tensor(history.losses, dtype=torch.float64)
    if history.gates:
        tensors["gates"] = torch.stack(history.gates)
    content = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    state = {
        "format": FORMAT,
        "about": _whole_about(about, model, accelerator),
        "sha256": hashlib.sha256(content).hexdigest(),
        "scaler": accelerator.scaler.state_dict() if accelerator.scaler else None,
    }
    _write_file(folder / TENSORS, content)
    _write_file(folder / STATE, (json.dumps(state, indent=1) + "\n").encode())
    if active_adapter(model) is not None:
        save_adapter(model, folder)


def read_state(
    folder: Path,
    about: dict,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
) -> History:
    """Put a state into model and optimiser, and return the history that led to it.

    Raises:
        BrokenStateError: the files are cut short, changed, or missing. Nothing was changed.
        ResumeError: they are of another run. Nothing was changed.
    """
    try:
        state = json.loads((folder / STATE).read_bytes())
        content = (folder / TENSORS).read_bytes()
        if state["format"] != FORMAT or state["sha256"] != hashlib.sha256(content).hexdigest():
            raise ValueError("its content is not what was written")
        differences = _differences(state["about"], _whole_about(about, model, accelerator))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BrokenStateError(f"the checkpoint {folder} is broken ({error!r}).") from error
    if differences:
        raise ResumeError(
            f"{folder} is of another run: {differences}. Take another folder, or go on with the "
            "model, data and settings of that run."
        )
    tensors = load(content)
    with torch.no_grad():
        for name, parameter in _trainable(model).items():
            parameter.copy_(tensors[f"model.{name}"])
    moments: dict[int, dict[str, Tensor]] = {}
    for key in [key for key in tensors if key.startswith("optimizer.")]:
        _, number, name = key.split(".")
        moments.setdefault(int(number), {})[name] = tensors[key]
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    if accelerator.scaler:
        accelerator.scaler.load_state_dict(state["scaler"])
    return History(tensors["losses"].tolist(), list(tensors.get("gates", [])))


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _whole_about(about: dict, model: nn.Module, accelerator: Accelerator) -> dict:
    shapes = {name: tuple(p.shape) for name, p in _trainable(model).items()}
    frozen = [p for p in model.parameters() if not p.requires_grad]
    return {
        **about,
        "what trains": hashlib.sha256(repr(shapes).encode()).hexdigest()[:16],
        "numbers that train": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "numbers of the base": sum(p.numel() for p in frozen),
        "precision": f"{next(model.parameters()).dtype}, {accelerator.mixed_precision}",
    }


def _differences(saved: dict, here: dict) -> str:
    names = [name for name in {**saved, **here} if saved.get(name) != here.get(name)]
    return ", ".join(f"{n} was {saved.get(n)!r}, now it is {here.get(n)!r}" for n in names)


def _write_file(path: Path, content: bytes) -> None:
    with open(path, "wb") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())
