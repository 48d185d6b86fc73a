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
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import align_module_device
from jaxtyping import Float
from safetensors.torch import load, save
from torch import Tensor, nn

from llama_adapter_edu.adapters.choice import active_adapter
from llama_adapter_edu.adapters.manage import adapter_configs
from llama_adapter_edu.files.save_load import save_adapter
from llama_adapter_edu.method.gated_prompts import AdaptionPrompt

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


@dataclass
class State:
    """All that changes in a run: copies of its tensors, and the gradient scaler's numbers."""

    tensors: dict[str, Tensor]
    scaler: dict


def capture(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    history: History,
) -> State:
    """The state after the last step of `history`."""
    tensors = {f"model.{name}": parameter for name, parameter in _trainable(model).items()}
    for number, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": tensor for name, tensor in moments.items()}
    tensors["losses"] = torch.tensor(history.losses, dtype=torch.float64)
    if history.gates:
        tensors["gates"] = torch.stack(history.gates)
    copies = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return State(copies, scaler.state_dict())


def restore(
    state: State,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
) -> History:
    """Put a state into model, optimiser and scaler; returns the history that led to it."""
    with torch.no_grad():
        for name, parameter in _trainable(model).items():
            parameter.copy_(state.tensors[f"model.{name}"])
    moments: dict[int, dict[str, Tensor]] = {}
    for key in [key for key in state.tensors if key.startswith("optimizer.")]:
        _, number, name = key.split(".")
        moments.setdefault(int(number), {})[name] = state.tensors[key]
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    scaler.load_state_dict(state.scaler)
    return History(state.tensors["losses"].tolist(), list(state.tensors.get("gates", [])))


def write_state(folder: Path, about: dict, state: State, model: nn.Module) -> None:
    """Write the state of a run into an empty folder.

    Raises:
        OSError: a file cannot be written.
    """
    content = save(state.tensors)
    described = {
        "format": FORMAT,
        "about": about,
        "sha256": hashlib.sha256(content).hexdigest(),
        "scaler": state.scaler,
    }
    _write_file(folder / TENSORS, content)
    _write_file(folder / STATE, (json.dumps(described, indent=1) + "\n").encode())
    if active_adapter(model) is not None:
        save_adapter(model, folder)


def read_state(folder: Path, about: dict) -> State:
    """The state in a folder.

    Raises:
        BrokenStateError: the files are cut short, changed, or missing.
        ResumeError: they are of another run.
    """
    try:
        described = json.loads((folder / STATE).read_bytes())
        content = (folder / TENSORS).read_bytes()
        whole = described["sha256"] == hashlib.sha256(content).hexdigest()
        if described["format"] != FORMAT or not whole:
            raise ValueError("its content is not what was written")
        differences = _differences(described["about"], about)
        state = State(load(content), described["scaler"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BrokenStateError(f"the checkpoint {folder} is broken ({error!r}).") from error
    if differences:
        raise ResumeError(
            f"{folder} is of another run: {differences}. Take another folder, or go on with the "
            "model, data and settings of that run."
        )
    return state


def about_model(model: nn.Module, accelerator: Accelerator) -> dict:
    """What a run must find again in a model to go on: plain values by name."""
    shapes = {name: tuple(p.shape) for name, p in _trainable(model).items()}
    name = active_adapter(model)
    return {
        "what trains": _short_hash(repr(shapes)),
        "numbers that train": sum(p.numel() for p in _trainable(model).values()),
        "precision": f"{next(model.parameters()).dtype}, {accelerator.mixed_precision}",
        **(asdict(adapter_configs(model)[name]) if name is not None else {}),
        "the base's weights": base_fingerprint(model, accelerator),
    }


def base_fingerprint(model: nn.Module, accelerator: Accelerator) -> str:
    """Changes with the frozen weights; the same if they are whole, spread, or offloaded.

    For each weight, the sum of its bits, read as whole numbers: exact in any order.
    """
    sums = []
    for module in model.modules():
        if isinstance(module, AdaptionPrompt):
            continue
        with align_module_device(module):  # offloaded weights come here and go again
            # Of buffers, the whole numbers: quantised weights. Others are computed, and rounded.
            weights = [p for p in module.parameters(recurse=False) if not p.requires_grad]
            weights += [b for b in module.buffers(recurse=False) if not b.is_floating_point()]
            for weight in weights:
                spread = hasattr(weight, "to_local")
                counts = spread or accelerator.is_main_process
                local = weight.to_local() if spread else weight
                sums.append(_sum_of_bits(local.detach()) if counts else 0)
    total = accelerator.reduce(torch.tensor(sums, device=accelerator.device))
    return _short_hash(repr(total.tolist()))


def _sum_of_bits(weight: Tensor) -> int:
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    bits = weight.contiguous().view(integers[weight.element_size()]).flatten()
    return sum(int(part.sum(dtype=torch.int64)) for part in bits.split(2**26)) % 2**62


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _differences(saved: dict, here: dict) -> str:
    names = [name for name in {**saved, **here} if saved.get(name) != here.get(name)]
    return ", ".join(f"{n} was {saved.get(n)!r}, now it is {here.get(n)!r}" for n in names)


def _write_file(path: Path, content: bytes) -> None:
    with open(path, "wb") as out:
        out.write(content)
        out.flush()
        os.fsync(out.fileno())
