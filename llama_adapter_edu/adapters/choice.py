"""Which adapter acts in a call: one for all rows, one for each row, or none.

    set_adapter(model, "a")            the model's own choice, wherever it is called
    with use_adapter(model, "b"):      another one in this block, and in this thread or task alone
    with use_adapter(model, ["a", None, "b"]):    one for each row of the batch, or none
    with disable_adapter(model):       the base model

What was asked last holds. Each block takes back only what it has asked itself.
"""

import itertools
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import nn

from llama_adapter_edu.adapters.config import AdaptionPromptConfig, CartridgeConfig
from llama_adapter_edu.adapters.decoder import decoder_of

Choice = str | None | tuple[str | None, ...]  # an adapter, the base model, or one of these per row


class AdapterState:
    """The adapters of a decoder: their settings by name, and which of them acts by default."""

    _numbers = itertools.count()

    def __init__(self) -> None:
        self.configs: dict[str, AdaptionPromptConfig | CartridgeConfig] = {}
        self.active: str | None = None
        self.number = next(self._numbers)

    def __setstate__(self, kept: dict) -> None:
        # A copy is another model: blocks that were opened for this one do not reach it.
        vars(self).update(kept, number=next(self._numbers))


class _Block(NamedTuple):
    """What one `use_adapter` has asked for."""

    number: int  # of the AdapterState
    choice: Choice


class _OfThread(threading.local):
    # Replaced, never changed in place. In `__init__`: of a class, torch.compile would not see that.
    def __init__(self) -> None:
        self.choices: dict[int, Choice] = {}


_blocks: ContextVar[tuple[_Block, ...]] = ContextVar("use_adapter", default=())
_of_thread = _OfThread()


def state_of(model: nn.Module) -> AdapterState:
    """What the model knows of its adapters; that there are none if it never had any."""
    return getattr(decoder_of(model), "adapter_state", None) or AdapterState()


def acting(state: AdapterState) -> Choice:
    """Which adapter acts now, in this thread or task.

    torch.compile cannot read a context variable. Compiled models see the thread's newest block, so
    tasks of one thread must not mix their blocks around a compiled model.
    """
    if torch.compiler.is_compiling():
        return _of_thread.choices.get(state.number, state.active)
    for block in reversed(_blocks.get()):
        if block.number == state.number:
            return block.choice
    return state.active


def active_adapter(model: nn.Module) -> str | None:
    """The name of the adapter that acts now; None for the base model.

    Raises:
        ValueError: the rows of a batch have adapters of their own now, so there is no one name.
    """
    choice = acting(state_of(model))
    if isinstance(choice, tuple):
        raise ValueError(
            "each row has an adapter of its own in this use_adapter block. Name the one you mean, "
            "or leave the block."
        )
    return choice


@contextmanager
def use_adapter(model: nn.Module, adapter: str | Sequence[str | None] | None) -> Iterator[None]:
    """Let another adapter act inside the `with` block, in this thread or asyncio task alone.

    Nothing is moved, and what trains stays as it is.

    Args:
        adapter: a name; None for the base model; or a name or None for each row of the batch. Their
            prompts may differ in number and in layers. `generate` may make several rows of each
            (beams, or `num_return_sequences`); they keep their adapter.

    Raises:
        ValueError: the model has no adapter of that name, or no names are given. In a call of the
            model: the batch has another number of rows.
    """
    state = state_of(model)
    choice = adapter if adapter is None or isinstance(adapter, str) else tuple(adapter)
    if not names_in(choice):
        raise ValueError("use_adapter got an empty list. Give a name or None for each row.")
    check_names(state, choice)
    with _block(state, choice):
        yield


@contextmanager
def disable_adapter(model: nn.Module) -> Iterator[None]:
    """Inside the `with` block, in this thread or task, the model is the base model, bit for bit."""
    with _block(state_of(model), None):
        yield


@contextmanager
def _block(state: AdapterState, choice: Choice) -> Iterator[None]:
    mine = _Block(state.number, choice)
    _set((*_blocks.get(), mine))
    try:
        yield
    finally:  # others may be equal to it
        _set(tuple(block for block in _blocks.get() if block is not mine))


def forget_blocks(state: AdapterState, adapter_name: str | None = None) -> None:
    """Drop what this thread's or task's blocks ask of a model; of one adapter, if it is named."""

    def stays(block: _Block) -> bool:
        return block.number != state.number or adapter_name not in (None, *names_in(block.choice))

    _set(tuple(filter(stays, _blocks.get())))


def _set(blocks: tuple[_Block, ...]) -> None:
    _blocks.set(blocks)
    _of_thread.choices = {block.number: block.choice for block in blocks}


def names_in(choice: Choice) -> tuple[str | None, ...]:
    """The adapter of all rows alone, or that of each row."""
    return choice if isinstance(choice, tuple) else (choice,)


def check_names(state: AdapterState, choice: Choice) -> None:
    """Raise ValueError if the model has no adapter of one of these names."""
    for name in names_in(choice):
        if name is not None and name not in state.configs:
            raise ValueError(f"no adapter named {name!r}; the model has {sorted(state.configs)}.")


def for_rows(choice: Choice, n_rows: int, *, in_generation: bool) -> Choice:
    """The choice for a batch of `n_rows`; of a single row's adapter where all rows agree.

    Raises:
        ValueError: names were given for another number of rows.
    """
    if not isinstance(choice, tuple):
        return choice
    times, rest = divmod(n_rows, len(choice))
    if rest or (times != 1 and not in_generation):
        raise ValueError(
            f"use_adapter names an adapter for each of {len(choice)} rows, but the batch has "
            f"{n_rows}. Give a name or None for each row."
        )
    rows = tuple(name for name in choice for _ in range(times))
    return rows[0] if len(set(rows)) == 1 else rows
