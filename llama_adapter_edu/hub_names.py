"""Names: is it a place on this computer or an id of the Hugging Face hub? And the hub's errors.

local_path("~/mine")      Path("/home/you/mine")   as "./x", "a/b/c", "x.json" and any Path
local_path("runs/mine")   Path("runs/mine")        as any "a/b" if there is a folder "a" here
local_path("owner/b")     None                     an id of the hub
local_path("a b/c?")      ValueError
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOG_IN = "create a token at https://huggingface.co/settings/tokens and run `hf auth login`"
# What ends like a file is a file; and this library keeps its results in the folder RESULTS.
SUFFIXES = (".json", ".jsonl", ".safetensors", ".pth", ".pt", ".bin", ".adapter", ".gguf")
RESULTS = "runs"


def local_path(source: str | os.PathLike, *, bare_id: bool = False) -> Path | None:
    """The place on this computer that `source` means, empty or not; None if it is an id of the hub.

    A folder of yours that is missing must not be looked up on the hub, where its first part may be
    the name of a stranger. So "owner/name" is an id only if there is no folder "owner" here.

    Args:
        source: `~` is the home folder.
        bare_id: whether a name without "/" may be an id, as old models have ("gpt2").

    Raises:
        ValueError: it is neither a path nor an id of the hub.
    """
    if not isinstance(source, (str, os.PathLike)):
        raise ValueError(f"expected a path or 'owner/name', got {type(source).__name__}.")
    text = os.fspath(source)
    if not isinstance(text, str) or not text or "\0" in text:
        raise _malformed(text)
    path = os.path.expanduser(text)
    if isinstance(source, os.PathLike) or os.path.exists(path) or _looks_local(text, bare_id):
        return Path(path)
    check_hub_id(text, bare_id=bare_id)
    return None


def _looks_local(text: str, bare_id: bool) -> bool:
    if text.startswith((".", "~", "/")) or "\\" in text or text.lower().endswith(SUFFIXES):
        return True
    owner, *rest = text.split("/")
    if not rest:
        return not bare_id
    return len(rest) > 1 or owner == RESULTS or os.path.isdir(owner)


def why_local(path: Path) -> str:
    """What to add to the error of a missing `path` that may have been meant as an id of the hub."""
    if path.is_absolute() or len(path.parts) != 2 or path.suffix in SUFFIXES:
        return ""
    owner = path.parts[0]
    return f" It is not looked up on the Hugging Face hub, as {owner!r} means the folder here."


def check_hub_id(name: object, *, bare_id: bool = False) -> None:
    """Raise ValueError unless `name` could be a repository of the hub."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
        # Old versions of huggingface_hub let these through.
        if not name or not name.isascii() or not name.isprintable():
            raise HFValidationError
        if "/" not in name and not bare_id:
            raise HFValidationError
    except HFValidationError as error:
        raise _malformed(name) from error


def _malformed(name: object) -> ValueError:
    return ValueError(
        f"{name!r:.120} is neither a path here nor an id of the Hugging Face hub. Expected a file "
        "or folder that exists, or 'owner/name' from letters, digits, '-', '_' and '.', without "
        "'--' and '..'."
    )


@contextmanager
def hub_errors(
    name: str, kind: str = "model", instead: str = "pass a folder", *, writing: bool = False
) -> Iterator[None]:
    """Inside, a failed request to the hub becomes one sentence: what is wrong, and what to do.

    Args:
        name: the repository's id.
        kind: what it should hold: "model", "adapter" or "data set".
        instead: what a reader without a network can do.
        writing: whether something is uploaded.

    Raises:
        FileNotFoundError: there is no such repository or revision that you may see.
        PermissionError: it needs a login, or its conditions were not accepted.
        ConnectionError: the hub does not answer.
        OSError: a fault of this computer, as a full disk.
    """
    from huggingface_hub import errors

    try:
        yield
    except errors.LocalTokenNotFoundError as error:
        raise PermissionError(f"You are not logged in to the hub: {LOG_IN}.") from error
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if writing and status in (401, 403, 404):
            raise PermissionError(
                f"The hub does not let you write {name} ({status}). Is it yours? For a token that "
                f"may write, {LOG_IN}."
            ) from error
        if isinstance(error, errors.GatedRepoError):
            raise not_permitted(name, kind) from error
        if isinstance(error, errors.RepositoryNotFoundError):
            raise not_found(name, kind) from error
        if isinstance(error, errors.RevisionNotFoundError):
            raise FileNotFoundError(f"{name} has no such revision on the hub.") from error
        # Failures of the network have many types; those that are OSErrors carry no number.
        if isinstance(error, OSError) and error.errno and not isinstance(error, ConnectionError):
            raise
        if writing:
            raise ConnectionError(
                f"{name} was not uploaded, the Hugging Face hub does not answer as it should: "
                f"{error!r:.200}. Try again later."
            ) from error
        raise no_answer(name, error, instead) from error


def not_found(name: str, kind: str) -> FileNotFoundError:
    """The error of a repository that is not there, or that one may not see."""
    return FileNotFoundError(
        f"There is no {kind} {name!r} on the Hugging Face hub that you may see, and no file or "
        f"folder of this name here (looked from {Path.cwd()}). Check the spelling. If it is "
        f"private, {LOG_IN}."
    )


def not_permitted(name: str, kind: str) -> PermissionError:
    """The error of a repository whose conditions were not accepted."""
    page = f"https://huggingface.co/{'datasets/' if kind == 'data set' else ''}{name}"
    return PermissionError(
        f"{name} is open only to those who accepted its conditions. Accept them on {page}, then "
        f"{LOG_IN}."
    )


def no_answer(name: str, error: Exception, instead: str) -> ConnectionError:
    """The error of a hub that does not answer."""
    return ConnectionError(
        f"The Hugging Face hub does not answer for {name!r} ({type(error).__name__}), and nothing "
        f"of this name is in its cache or in the folder {Path.cwd()}. Check the spelling, connect "
        f"to the internet, or {instead}."
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' warnings and loading bars inside, and put the user's settings back.

    A download from the hub keeps its progress bar: it can take minutes.
    """
    from huggingface_hub import utils as hub
    from transformers.utils import logging

    loggers = [(logger, logger.get_verbosity()) for logger in (logging, hub.logging)]
    bars, hub_bars = logging.is_progress_bar_enabled(), not hub.are_progress_bars_disabled()
    for logger, _ in loggers:
        logger.set_verbosity_error()
    logging.disable_progress_bar()  # disables the hub's bars as well
    if hub_bars:
        hub.enable_progress_bars()
    try:
        yield
    finally:
        for logger, verbosity in loggers:
            logger.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()  # enables the hub's bars as well
        if not hub_bars:
            hub.disable_progress_bars()
