"""Skip what starts a kernel or processes that train, opens the Llama, or is marked as heavy."""

import os
import sys

import pytest

from llama_adapter_edu.base_models.course_llama import CONVERTED, cache_folder

STARTED = {"--nbval", "ipykernel_launcher", "build.py", "accelerate.commands.launch"}


def skip_at_kernels_and_the_llama() -> None:
    """From now on, in this process. No list of tests to keep: what a test does decides."""
    llama = str(cache_folder() / CONVERTED) + os.sep

    def watch(event: str, arguments: tuple) -> None:
        if event == "open" and str(arguments[0]).startswith(llama):
            pytest.skip("opens the course's Llama: make test")
        if event == "subprocess.Popen" and STARTED & {*map(os.path.basename, arguments[1])}:
            pytest.skip("starts a kernel or processes that train: make test")

    sys.addaudithook(watch)
