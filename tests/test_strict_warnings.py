"""A deprecated call in our own code fails the test that meets it; one elsewhere does not."""

import logging
import warnings

import pytest

KINDS = [DeprecationWarning, PendingDeprecationWarning, FutureWarning]
LIBRARY = """
import logging, warnings
def old(kind):
    warnings.warn("old is deprecated", kind)
def said():
    logging.getLogger("transformers.models").warning("old is deprecated")
"""


@pytest.fixture
def library():
    code = {"__name__": "library.part"}
    exec(LIBRARY, code)
    return code


def call(caller, expression, **names):
    return eval(expression, names | {"__name__": caller})


@pytest.mark.parametrize("kind", KINDS)
def test_our_own_deprecated_call_is_an_error(library, kind):
    with pytest.raises(kind, match="old is deprecated"):
        call("llama_adapter_edu.module", "old(kind)", old=library["old"], kind=kind)


@pytest.mark.parametrize("kind", KINDS)
def test_one_that_another_library_makes_is_not(library, kind):
    inner = {"__name__": "other.part", "old": library["old"], "kind": kind}
    exec("def use():\n    old(kind)", inner)
    with pytest.warns(kind):
        call("llama_adapter_edu.module", "use()", use=inner["use"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_line_of_ours_that_a_warning_names_is_an_error(kind):
    with pytest.raises(kind):
        warnings.warn_explicit("old", kind, "file.py", 1, module="llama_adapter_edu.module")


def test_what_transformers_says_by_its_logger(library):
    with pytest.raises(FutureWarning, match="old is deprecated"):
        call("llama_adapter_edu.module", "said()", said=library["said"])
    library["said"]()
    logging.getLogger("transformers").warning("all is well")
