"""What an id of the Hugging Face hub looks like, and two words on talking to the hub."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings and loading bars of transformers inside, the user's own settings again after.

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


PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
HUB_ID = re.compile(rf"{PART}/{PART}")


def is_hub_id(source: str | os.PathLike) -> bool:
    """Whether `source` means a repository of the hub and not a place on this computer.

    Raises:
        ValueError: it is neither a path nor an id.
    """
    if isinstance(source, os.PathLike):
        return False
    if not isinstance(source, str):
        raise ValueError(f"expected a folder or 'owner/name', got {type(source).__name__}.")
    if "\0" in source or not source:
        raise _malformed(source)
    if os.path.exists(os.path.expanduser(source)) or _looks_like_path(source):
        return False
    check_hub_id(source)
    return True


def _looks_like_path(text: str) -> bool:
    return text.startswith((".", "~", "/")) or "\\" in text or text.count("/") != 1


def check_hub_id(name: str) -> None:
    """Raise ValueError unless `name` could be a repository of the hub."""
    good = HUB_ID.fullmatch(name) and len(name) <= 96
    if not good or "--" in name or ".." in name or name.endswith(".git"):
        raise _malformed(name)


def _malformed(name: str) -> ValueError:
    return ValueError(
        f"{name[:120]!r} is neither a folder here nor an id of the Hugging Face hub. Expected "
        "'owner/name' from letters, digits, '-', '_' and '.', at most 96 in all, without '--' and "
        "'..', or a folder that exists."
    )


LOG_IN = "create a token at https://huggingface.co/settings/tokens and run `hf auth login`"
