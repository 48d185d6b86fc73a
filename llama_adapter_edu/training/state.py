"""The state of a training run in a file, bit for bit.

    state.safetensors   what trains (model.NAME), the optimiser's moments (optimizer.NUMBER.NAME),
                        the gradient scaler's numbers, the losses (float64), the gates' openings;
                        in its header: settings, data and model of the run, and a checksum
    adapter_config.json, adapter_model.safetensors        as from `save_adapter`, to load by itself

There are no pickles. Random states are not needed: each step draws its random numbers from the seed
and its own number. `resume.py` keeps such files.
"""

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import Accelerator
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from llama_adapter_edu.adapters.choice import active_adapter
from llama_adapter_edu.adapters.manage import adapter_configs
from llama_adapter_edu.base_models.fingerprint import base_fingerprint
from llama_adapter_edu.files.save_load import save_adapter

FORMAT, FILE = "llama_adapter_edu/run/2", "state.safetensors"


class ResumeError(ValueError):
    """A resume folder cannot be used; the message says why, and what to do."""


class BrokenStateError(ResumeError):
    """The file of a state is not what was written."""


@dataclass
class History:
    """What a run was like: one entry per step."""

    losses: list[float] = field(default_factory=list)
    gates: list[Float[Tensor, "layers h"]] = field(default_factory=list)


class Trained(NamedTuple):
    """What changes in a run."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler

    def state(self, history: History) -> dict[str, Tensor]:
        """Copies of all that must be kept after the last step of `history`."""
        tensors = {f"model.{name}": p for name, p in _trainable(self.model).items()}
        for number, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{number}.{name}": tensor for name, tensor in moments.items()}
        numbers = {f"scaler.{name}": value for name, value in self.scaler.state_dict().items()}
        numbers["losses"] = history.losses
        tensors |= {n: torch.tensor(value, dtype=torch.float64) for n, value in numbers.items()}
        if history.gates:
            tensors["gates"] = torch.stack(history.gates)
        return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}

    def restore(self, state: dict[str, Tensor]) -> History:
        """Put a state into place; returns the history that led to it."""
        with torch.no_grad():
            for name, parameter in _trainable(self.model).items():
                parameter.copy_(state[f"model.{name}"])
        moments: dict[int, dict[str, Tensor]] = {}
        for key in (key for key in state if key.startswith("optimizer.")):
            _, number, name = key.split(".")
            moments.setdefault(int(number), {})[name] = state[key]
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        names = self.scaler.state_dict()
        self.scaler.load_state_dict({name: state[f"scaler.{name}"].item() for name in names})
        return History(state["losses"].tolist(), list(state.get("gates", [])))


def write_state(folder: Path, about: dict, state: dict[str, Tensor], model: nn.Module) -> None:
    """Write the state of a run, and its adapter, into an empty folder.

    Raises:
        OSError: a file cannot be written.
    """
    # In one text: safetensors writes several in any order, and equal runs would not be equal files.
    header = {"run": json.dumps({"format": FORMAT, "about": about, "sha256": _checksum(state)})}
    with open(folder / FILE, "wb") as out:
        out.write(save(state, metadata=header))
        out.flush()
        os.fsync(out.fileno())
    if active_adapter(model) is not None:
        save_adapter(model, folder)


def read_state(folder: Path, about: dict) -> dict[str, Tensor]:
    """The state in a folder.

    Raises:
        BrokenStateError: the file is cut short, changed, or missing.
        ResumeError: it is of another run.
    """
    try:
        with safe_open(folder / FILE, framework="pt") as file:
            header = json.loads(file.metadata()["run"])
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if (header["format"], header["sha256"]) != (FORMAT, _checksum(state)):
            raise ValueError("its content is not what was written")
        then = dict(header["about"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise BrokenStateError(f"the checkpoint {folder} is broken ({error!r}).") from error
    if names := [name for name in {**then, **about} if then.get(name) != about.get(name)]:
        shown = (f"{n} was {then.get(n)!r}, now it is {about.get(n)!r}" for n in names)
        raise ResumeError(
            f"{folder} is of another run: {', '.join(shown)}. Take another folder, or go on with "
            "the model, data and settings of that run."
        )
    return state


def about_model(model: nn.Module, accelerator: Accelerator) -> dict:
    """What a run must find again in a model to go on: plain values by name."""
    shapes = {name: tuple(p.shape) for name, p in _trainable(model).items()}
    name = active_adapter(model)
    return {
        "what trains": hashlib.sha256(repr(shapes).encode()).hexdigest()[:16],
        "precision": f"{next(model.parameters()).dtype}, {accelerator.mixed_precision}",
        **(adapter_configs(model)[name].settings() if name is not None else {}),
        "base": base_fingerprint(model, accelerator),
    }


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _checksum(state: dict[str, Tensor]) -> str:
    return hashlib.sha256(save(state)).hexdigest()
