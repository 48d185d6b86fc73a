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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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


@dataclass
class ResumeFolder:
    """The checkpoints of one run; a folder of None keeps nothing.

    Only the main process looks into the folder. The others, which may run on machines without it,
    are told what it holds. `about`: settings, data and model of the run, plain values by name.
    """

    folder: Path | None
    about: dict
    accelerator: Accelerator

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


@contextmanager
def resume_folder(
    folder: str | os.PathLike | None, about: dict, accelerator: Accelerator
) -> Iterator[ResumeFolder]:
    """The folder, made if need be, held by this run alone inside the `with` block.

    Raises:
        ResumeError: another run works in it.
        OSError: it cannot be written.
    """
    if folder is None:
        yield ResumeFolder(None, about, accelerator)
        return
    path = Path(folder)
    lock = FileLock(path / LOCK, timeout=0)
    on_main_process(accelerator, lambda: _hold(path, lock))
    try:
        yield ResumeFolder(path, about, accelerator)
    finally:
        lock.release()


def _hold(folder: Path, lock: FileLock) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise ResumeError(
            f"another run is working in {folder}. Wait until it has ended, or take another folder."
        ) from None
    except OSError as error:
        raise _cannot_write(folder, error) from error
    for leftover in folder.glob(f"{UNFINISHED}*"):
        shutil.rmtree(leftover)


def _cannot_write(path: Path, error: OSError) -> OSError:
    return OSError(
        error.errno,
        f"cannot write {path}: {error.strerror or error}. Earlier checkpoints are whole. Make room "
        "or take another folder, then run again",
    )
