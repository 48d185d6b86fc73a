"""A folder of checkpoints that a training run works in, one run at a time.

    resume folder/
      .lock            held while a run works here; the system lets go of it when the run dies
      step-000040/     the state after 40 steps: written beside its place, then renamed, so that
      step-000060/     whatever carries this name is whole

The two newest checkpoints stay. What is in them: `state.py`.
"""

import os
import re
import shutil
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from accelerate import Accelerator
from filelock import FileLock, Timeout
from torch import Tensor

from llama_adapter_edu.training.processes import on_main_process
from llama_adapter_edu.training.state import (
    BrokenStateError,
    History,
    ResumeError,
    Trained,
    read_state,
    write_state,
)

LOCK, UNFINISHED = ".lock", ".unfinished-"
STEP = re.compile(r"step-\d{6,}")
KEPT = 2


class ResumeFolder:
    """The checkpoints of one run. Use it in a `with` block; a folder of None keeps nothing.

    Only the main process looks into the folder. The others, which may run on machines without it,
    are told what it holds.

    Args:
        about: settings, data and model of the run, plain values by name. A run only goes on where
            they are the same.

    Raises (on entering):
        ResumeError: another run works in the folder.
        OSError: it cannot be written.
    """

    def __init__(
        self, folder: str | os.PathLike | None, about: dict, accelerator: Accelerator
    ) -> None:
        self.folder = None if folder is None else Path(folder)
        self.about, self.accelerator = about, accelerator
        self._held = ExitStack()

    def __enter__(self) -> "ResumeFolder":
        if self.folder is not None:
            on_main_process(self.accelerator, self._hold)
        return self

    def __exit__(self, *exception: object) -> None:
        self._held.close()

    def load(self, trained: Trained) -> History:
        """Put the newest checkpoint into place; without one, all begin as the main process does.

        Returns:
            the history up to the checkpoint.

        Raises:
            ResumeError: it is of another run, or broken. Nothing was changed.
        """
        begin = partial(trained.state, History())
        return trained.restore(on_main_process(self.accelerator, lambda: self._newest() or begin()))

    def save(self, trained: Trained, history: History) -> str:
        """Write a checkpoint, unless this step has one. Returns a sentence that says where it is.

        Raises:
            OSError: it cannot be written; earlier checkpoints are whole.
        """
        if self.folder is None:
            return ""
        path = self.folder / f"step-{len(history.losses):06d}"
        on_main_process(self.accelerator, lambda: self._write(path, trained, history))
        return f"The state is saved in {path}."

    def _hold(self) -> None:
        self._held.callback(_lock(self.folder).release)
        for leftover in self.folder.glob(f"{UNFINISHED}*"):
            shutil.rmtree(leftover)

    def _newest(self) -> dict[str, Tensor] | None:
        *earlier, newest = [None, *self._checkpoints()]
        if newest is None:
            return None
        try:
            return read_state(newest, self.about)
        except BrokenStateError as error:
            where = f"step {_step_of(earlier[-1])}" if earlier[-1] else "the beginning"
            message = f"{error} Delete it, and the run goes on from {where}."
            raise BrokenStateError(message) from error

    def _write(self, path: Path, trained: Trained, history: History) -> None:
        if path.exists():
            return
        try:
            with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=self.folder) as unfinished:
                whole = Path(unfinished, path.name)
                whole.mkdir()
                write_state(whole, self.about, trained.state(history), trained.model)
                os.rename(whole, path)
            self._forget_old()
        except OSError as error:
            raise _cannot_write(path, error) from error

    def _checkpoints(self) -> list[Path]:
        if self.folder is None:
            return []
        found = [path for path in self.folder.iterdir() if STEP.fullmatch(path.name)]
        return sorted(found, key=_step_of)

    def _forget_old(self) -> None:
        for old in self._checkpoints()[:-KEPT]:
            # Renamed first: a checkpoint must not be found half deleted.
            with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=self.folder) as bin:
                os.rename(old, Path(bin, old.name))


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def _lock(folder: Path) -> FileLock:
    """The lock of the folder, held. The folder is made if need be."""
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise ResumeError(
            f"another run is working in {folder}. Wait until it has ended, or take another folder."
        ) from None
    except OSError as error:
        raise _cannot_write(folder, error) from error
    return lock


def _cannot_write(path: Path, error: OSError) -> OSError:
    return OSError(
        error.errno,
        f"cannot write {path}: {error.strerror or error}. Earlier checkpoints are whole. Make room "
        "or take another folder, then run again",
    )
