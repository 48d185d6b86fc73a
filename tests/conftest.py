"""Fixtures shared by the tests: the course's Llama, and small random models of many families."""

import os

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")  # old kernels print advice about it

import pytest
import strict_warnings
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from llama_adapter_edu import load_llama

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 2)))


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the tests that take minutes, too")


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes minutes; runs with --slow")
    strict_warnings.install()


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--slow"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="takes minutes: make test-slow"))


@pytest.fixture(scope="session")
def llama():
    """(model, tokenizer) of the course's Llama, shared by all tests: do not change it."""
    return load_llama()


@pytest.fixture
def fresh_llama():
    """(model, tokenizer) of the course's Llama, for one test to change as it likes."""
    return load_llama()


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
