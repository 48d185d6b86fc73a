"""Fixtures shared by the tests: the course's Llama, and small random models of many families.

`pytest -n auto` shares the tests among a few processes, one thread each: those of a module, and of
a lesson, stay together, so that what their fixtures make is made once.
"""

import os
import signal

# Before torch is loaded, and inherited by every kernel and process that a test starts.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")  # old kernels print advice about it

import course  # noqa: F401  makes the folder that all processes of the run share
import pytest
import quick
import strict_warnings
import torch
from accelerate.state import AcceleratorState
from gates import open_gates
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
)

from llama_adapter_edu import AdaptionPromptConfig, add_adaption_prompts, load_llama
from llama_adapter_edu.base_models.course_llama import course_llama

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))


collect_ignore = ["browser"]  # they need a browser: make test-site, make test-jupyter
PROCESSES = 4  # at most, with `-n auto`: each may hold the Llama several times


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the tests that take minutes, too")
    parser.addoption("--quick", action="store_true", help=quick.__doc__)


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes minutes; runs with --slow")
    config.addinivalue_line("markers", "heavy: compiles, installs or kills; not with --quick")
    strict_warnings.install()
    if config.getoption("--quick"):
        quick.skip_at_kernels_and_the_llama()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    return min(os.cpu_count() or 1, PROCESSES)


# These come first: at the end no process waits for another one.
LONGEST = ("test_notebooks", "test_resume", "test_ablations", "test_v2")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    items.sort(key=lambda item: item.path.stem not in LONGEST)
    for item in items:
        if not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
        if item.get_closest_marker("slow") and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="takes minutes: make test-slow"))
        if item.get_closest_marker("heavy") and config.getoption("--quick"):
            item.add_marker(pytest.mark.skip(reason="compiles, installs or kills: make test"))


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_interrupts():
    """As in a terminal: a process that a shell started in the background ignores Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module", autouse=True)
def accelerate_remembers_nothing():
    """A process has one state of accelerate: the precision of TRL's trainer would stay in it."""
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def llama():
    """(model, tokenizer) of the course's Llama, shared by all tests: do not change it."""
    return load_llama()


@pytest.fixture
def fresh_llama():
    """(model, tokenizer) of the course's Llama, for one test to change as it likes."""
    return load_llama()


@pytest.fixture(scope="session")
def small_llama_folder(tmp_path_factory):
    """A folder with a random Llama of two layers and the course's tokenizer: fast to train."""
    folder = tmp_path_factory.mktemp("small_llama")
    tokenizer = AutoTokenizer.from_pretrained(course_llama())
    torch.manual_seed(0)
    shape = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 6, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), **shape, **heads)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def small_adapted(small_llama_folder):
    """(model, tokenizer): the small Llama with 4 prompts in both layers, all gates open."""
    model, tokenizer = load_llama(str(small_llama_folder))
    torch.manual_seed(0)
    add_adaption_prompts(model, AdaptionPromptConfig(adapter_len=4, adapter_layers=2))
    open_gates(model)
    return model, tokenizer


@pytest.fixture
def tiny():
    """`tiny("qwen3", head_dim=32)`: a small random model of that family, the same each time."""

    def build(family="llama", attn_implementation="eager", dtype=torch.float32, **settings):
        shape = {
            "vocab_size": 96,
            "hidden_size": 48,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }
        torch.manual_seed(0)
        config = CONFIG_MAPPING[family](**shape | settings)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attn_implementation)
        return model.to(dtype).eval()

    return build
