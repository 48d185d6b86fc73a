"""Every decoder family that transformers can build small: exact, or refused and left as it was."""

import pytest
import torch
import transformers

from llama_adapter_edu import AdaptionPromptConfig, add_adaption_prompts
from tools import families

# Norms of keys, of values, clips, scales, fused projections, experts, layers that are run twice.
SAMPLE = ["cohere", "dory", "gpt_oss", "llama4_text", "olmo", "olmoe", "phi", "phi3", "qwen3"]


@pytest.mark.parametrize("name", SAMPLE)
def test_prompts_get_the_keys_and_values_of_the_models_own_cache(name):
    try:
        assert families.judge(name) == "exact"
    except families.NotSmallError as error:
        pytest.skip(f"transformers {transformers.__version__} builds no small {name}: {error}")


@pytest.mark.parametrize("name", ["diffllama", "minimax", "gpt2"])
def test_a_refused_family_is_left_as_it_was(name):
    model = families.small(name)
    ids = torch.tensor([[3, 4, 5]])
    before = model(input_ids=ids).logits
    training = [p.requires_grad for p in model.parameters()]
    with pytest.raises(ValueError):
        add_adaption_prompts(model, AdaptionPromptConfig(4, 3))
    assert torch.equal(model(input_ids=ids).logits, before)
    assert [p.requires_grad for p in model.parameters()] == training


@pytest.mark.slow
def test_all_families_and_the_page_about_them():
    page = families.PAGE.read_text(encoding="utf-8")
    found = list(families.verdicts())
    assert [name for name, verdict in found if "DIFFERS" in verdict] == []
    if f"transformers {transformers.__version__}," in page:
        assert families.table(found) in page, "run: python -m tools.families --write"
