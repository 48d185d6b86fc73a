"""Silence while a model loads: a notebook's output shows the lesson, not the machinery."""

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
