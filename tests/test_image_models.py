"""Models with a picture tower of their own: prompts act in the text part, the tower stays as it is.

The oracle is an attention function by hand, put into the bare model through transformers' registry.
"""

import copy

import pytest
import torch
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    Gemma3Config,
    Idefics3Config,
    InternVLConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaNextConfig,
    PaliGemmaConfig,
    Qwen2_5_VLConfig,
    Qwen2VLConfig,
    SmolVLMConfig,
)
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from llama_adapter_edu import AdaptionPromptConfig, add_adaption_prompts, disable_adapter
from llama_adapter_edu.adapters.decoder import attention_layers, decoder_of
from llama_adapter_edu.adapters.manage import adapter_prompts

HEADS = dict(num_attention_heads=4, num_key_value_heads=2)
TEXT = dict(hidden_size=32, intermediate_size=40, num_hidden_layers=3, vocab_size=99, **HEADS)
TOWER = dict(hidden_size=24, intermediate_size=28, num_hidden_layers=2, num_attention_heads=2)
IMAGE = 90  # the token that stands for a piece of the picture
SQUARE = TOWER | dict(image_size=8, patch_size=4)  # 4 pieces


def llava(kind=LlavaConfig, **settings):
    config = kind(
        vision_config=CLIPVisionConfig(**SQUARE),
        text_config=LlamaConfig(**TEXT),
        image_token_index=IMAGE,
        image_token_id=IMAGE,
        image_seq_length=4,
        vision_feature_layer=-1,
        **settings,
    )
    return config, 4, {"pixel_values": torch.rand(1, 3, 8, 8)}


def llava_next():
    config, _, _ = llava(LlavaNextConfig, image_grid_pinpoints=[[8, 8]])
    inputs = {"pixel_values": torch.rand(1, 2, 3, 8, 8), "image_sizes": torch.tensor([[8, 8]])}
    return config, 4 + 4 + 2, inputs  # the whole, its one tile, and a new line for each row


def qwen(kind):
    tower = dict(depth=2, embed_dim=24, hidden_size=32, num_heads=2, patch_size=4, mlp_ratio=1)
    if kind is Qwen2_5_VLConfig:
        tower = dict(depth=2, hidden_size=24, out_hidden_size=32, num_heads=2, patch_size=4)
        tower |= dict(intermediate_size=28, window_size=16, fullatt_block_indexes=[1])
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    special = dict(image_token_id=IMAGE, video_token_id=91, vision_start_token_id=92)
    special |= dict(vision_end_token_id=93)
    text = TEXT | dict(rope_scaling=rope, rope_parameters=rope)
    config = kind(vision_config=tower, text_config=text, **special)
    grid = torch.tensor([[1, 4, 4]])
    return config, 4, {"pixel_values": torch.rand(16, 3 * 2 * 4 * 4), "image_grid_thw": grid}


def gemma3():
    text = TEXT | dict(head_dim=8, sliding_window=8)
    tower = SQUARE | dict(vision_use_head=False)
    config = Gemma3Config(
        text_config=text, vision_config=tower, mm_tokens_per_image=4, image_token_id=IMAGE
    )
    return config, 4, {"pixel_values": torch.rand(1, 3, 8, 8)}


def paligemma():
    text = TEXT | dict(model_type="gemma", head_dim=8)
    tower = SQUARE | dict(model_type="siglip_vision_model", projection_dim=32)
    config = PaliGemmaConfig(
        text_config=text,
        vision_config=tower,
        image_token_id=IMAGE,
        projection_dim=32,
        hidden_size=32,
    )
    return config, 4, {"pixel_values": torch.rand(1, 3, 8, 8)}


def intern_vl():
    tower = TOWER | dict(image_size=[8, 8], patch_size=[2, 2])
    config = InternVLConfig(
        vision_config=tower, text_config=TEXT | dict(model_type="qwen2"), image_token_id=IMAGE
    )
    return config, 4, {"pixel_values": torch.rand(1, 3, 8, 8)}


def idefics(kind):
    text = TEXT | dict(model_type="llama", pad_token_id=0)
    config = kind(vision_config=SQUARE, text_config=text, image_token_id=IMAGE, scale_factor=2)
    return config, 1, {"pixel_values": torch.rand(1, 1, 3, 8, 8)}


MODELS = {
    "LLaVA": llava,
    "LLaVA-Next": llava_next,
    "Qwen2-VL": lambda: qwen(Qwen2VLConfig),
    "Qwen2.5-VL": lambda: qwen(Qwen2_5_VLConfig),
    "Gemma 3": gemma3,
    "PaliGemma": paligemma,
    "InternVL": intern_vl,
    "SmolVLM": lambda: idefics(SmolVLMConfig),
    "Idefics3": lambda: idefics(Idefics3Config),
}


@pytest.fixture(params=MODELS)
def seeing(request):
    """A bare model with a picture tower, and the inputs of a text with a picture."""
    torch.manual_seed(0)
    config, n_pieces, inputs = MODELS[request.param]()
    model = AutoModelForImageTextToText.from_config(config).eval()
    ids = torch.tensor([[5, *[IMAGE] * n_pieces, 6, 7, 8]])
    inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if request.param in ("Gemma 3", "PaliGemma", "Qwen2-VL", "Qwen2.5-VL"):
        inputs["mm_token_type_ids"] = inputs["token_type_ids"] = (ids == IMAGE).long()
    if request.param.startswith("Qwen"):
        del inputs["token_type_ids"]
    elif "mm_token_type_ids" in inputs:
        del inputs["mm_token_type_ids"]
    return model, inputs


def by_hand(prompts):
    """An attention function: softmax attention, plus the prompts of the layers that have some."""

    def attention(module, query, key, value, mask, scaling=None, **_):
        groups, scale = query.shape[1] // key.shape[1], scaling or query.shape[-1] ** -0.5
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
        scores = (query @ key.mT * scale).float()
        scores = scores if mask is None else scores + mask
        output = scores.softmax(-1) @ value
        if module.layer_idx in prompts:
            prompt = prompts[module.layer_idx]
            width = query.shape[-1]
            heads = [
                p(prompt.prompts).unflatten(-1, (-1, width)) for p in (module.k_proj, module.v_proj)
            ]
            heads[0] = module.k_norm(heads[0]) if hasattr(module, "k_norm") else heads[0]
            own_key, own_value = (x.transpose(0, 1).repeat_interleave(groups, dim=0) for x in heads)
            weights = (query @ own_key.mT * scale).softmax(-1) * prompt.gate.tanh()[:, None, None]
            output = output + weights @ own_value
        return output.transpose(1, 2), None

    return attention


def logits(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits


def test_prompts_act_in_the_text_part_and_the_tower_is_bit_identical(seeing):
    model, inputs = seeing
    bare, tower_outputs = copy.deepcopy(model), []
    base = logits(model, inputs)
    without = {name: x for name, x in inputs.items() if not name.startswith(("pixel", "image"))}
    towers = [
        m
        for n, m in model.named_modules()
        if n.split(".")[-1] in ("visual", "vision_tower", "vision_model")
    ]
    towers[0].register_forward_hook(lambda module, args, output: tower_outputs.append(output))

    add_adaption_prompts(model, AdaptionPromptConfig(5, 2))
    assert torch.equal(logits(model, inputs), base)
    torch.manual_seed(1)
    prompts = adapter_prompts(model, "default")
    for prompt in prompts.values():
        torch.nn.init.normal_(prompt.gate)
    found = logits(model, inputs)
    assert (found - base).abs().max() > 1e-3

    AttentionInterface.register("by_hand", by_hand(prompts))
    AttentionMaskInterface.register("by_hand", ALL_MASK_ATTENTION_FUNCTIONS["eager"])
    decoder_of(bare).config._attn_implementation = "by_hand"
    torch.testing.assert_close(found, logits(bare, inputs), rtol=1e-4, atol=1e-5)

    first, second = (
        o[0] if isinstance(o, tuple) else getattr(o, "last_hidden_state", o)
        for o in tower_outputs[-2:]
    )
    assert torch.equal(first, second)
    with disable_adapter(model):
        assert torch.equal(logits(model, inputs), base)
    trains = {name for name, p in model.named_parameters() if p.requires_grad}
    assert len(trains) == 4 and all("adaption_prompts" in name for name in trains)
    assert len(attention_layers(model)) == 3 and without.keys() < inputs.keys()


def test_it_generates_from_the_picture(seeing):
    model, inputs = seeing
    add_adaption_prompts(model, AdaptionPromptConfig(5, 2))
    for prompt in adapter_prompts(model, "default").values():
        torch.nn.init.normal_(prompt.gate)
    options = dict(max_new_tokens=3, do_sample=False, eos_token_id=98)
    cached = model.generate(**inputs, **options)
    with_adapter = logits(model, inputs)[:, -1].argmax(-1)
    assert cached[0, inputs["input_ids"].shape[1]] == with_adapter[0]
