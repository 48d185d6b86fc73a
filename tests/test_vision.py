"""A Llama that sees: what a picture changes, what it must not change, and what is refused."""

import copy
import inspect
import json
import os
from functools import partial
from importlib.resources import files
from statistics import fmean

import pytest
import torch
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel, DynamicCache

from llama_adapter_edu import (
    AdaptionPrompt,
    AdaptionPromptConfig,
    TrainingConfig,
    add_adaption_prompts,
    add_vision,
    disable_adapter,
    gated_prompt_attention,
    load_adapter,
    prompt_weights,
    save_adapter,
    set_adapter,
)
from llama_adapter_edu.adapters.layers.keys import layer_keys_values
from llama_adapter_edu.adapters.manage import adapter_configs, adapter_prompts
from llama_adapter_edu.course.tasks.digits import (
    HELD_OUT,
    QUESTIONS,
    accuracy,
    digit_pictures,
    question_batch,
    questions_about,
)
from llama_adapter_edu.course.tasks.digits_training import (
    adapted_layers_alone,
    answer_words,
    train_digits,
)
from llama_adapter_edu.files.save_load import AdapterFileError
from llama_adapter_edu.method.gated_prompts import attend_to_heads
from llama_adapter_edu.method.image_prompts import add_image, image_keys_values
from llama_adapter_edu.training.loss import answer_loss
from llama_adapter_edu.vision.attach import image_prompt_of, vision_of
from llama_adapter_edu.vision.encoders import ClipEncoder, DigitEncoder
from llama_adapter_edu.vision.image_prompt import ImagePrompt

SMALL = AdaptionPromptConfig(adapter_len=4, adapter_layers=2)
GREEDY = {"do_sample": False, "eos_token_id": None, "max_new_tokens": 5}


def clip_encoder(layers=(1, 3)) -> ClipEncoder:
    sizes = dict(hidden_size=32, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4)
    return ClipEncoder(
        CLIPVisionModel(CLIPVisionConfig(image_size=16, patch_size=8, **sizes)), layers
    )


def open_gates(model, name="default", std=0.8):
    torch.manual_seed(2)
    for prompt in adapter_prompts(model, name).values():
        nn.init.normal_(prompt.gate, std=std)


@pytest.fixture
def seeing(tiny):
    """A small random Llama that takes digits, with open gates."""
    model = add_vision(
        add_adaption_prompts(tiny(attn_implementation="sdpa"), SMALL), DigitEncoder()
    )
    open_gates(model)
    return model


@pytest.fixture
def words():
    return torch.randint(3, 96, (3, 6), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def images():
    return torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(1))


def logits(model, ids, **inputs):
    with torch.no_grad():
        return model(input_ids=ids, **inputs).logits


class TestEquations:
    def test_the_features_of_all_scales_are_joined_in_order_and_projected(self):
        look = ImagePrompt(DigitEncoder(), model_width=24)
        images = torch.rand(5, 8, 8)
        fine, coarse = look.encoder(images)
        assert (fine.shape, coarse.shape) == ((5, 512), (5, 256))
        by_hand = torch.stack(
            [look.projection(torch.cat([f, c])) for f, c in zip(fine, coarse, strict=True)]
        )
        torch.testing.assert_close(look(images), by_hand)

    def test_every_prompt_gets_the_same_vector(self):
        prompts, image = torch.randn(4, 24), torch.randn(3, 24)
        added = add_image(prompts, image)
        for row in range(3):
            for slot in range(4):
                torch.testing.assert_close(added[row, slot], prompts[slot] + image[row])

    @pytest.mark.parametrize("gates", [6, 1])
    def test_rows_with_their_own_prompts_are_rows_computed_one_by_one(self, gates):
        prompt = AdaptionPrompt(4, 24, 6, gate="per_head" if gates == 6 else "per_layer")
        nn.init.normal_(prompt.gate)
        query = torch.randn(3, 6, 5, 8)
        key, value = torch.randn(3, 2, 4, 8), torch.randn(3, 2, 4, 8)
        one_by_one = torch.cat(
            [
                gated_prompt_attention(query[i : i + 1], key[i], value[i], prompt.gate, scale=0.2)
                for i in range(3)
            ]
        )
        heads = prompt.gated_heads(key, value, 6)
        together = attend_to_heads(query, *heads, scale=0.2)
        torch.testing.assert_close(together, one_by_one)

    def test_keys_and_values_of_each_row_come_from_its_own_prompts(self):
        def keys_values(prompts):
            return tuple(
                x.unflatten(-1, (2, 8)).movedim(1, 0) for x in (prompts @ key, prompts @ value)
            )

        key, value, prompts = torch.randn(24, 16), torch.randn(24, 16), torch.randn(3, 4, 24)
        together = image_keys_values(prompts, keys_values)
        for row in range(3):
            for got, expected in zip(together, keys_values(prompts[row]), strict=True):
                torch.testing.assert_close(got[row], expected)

    def test_one_vector_for_all_prompts_leaves_the_weights_and_adds_its_value(self, seeing, words):
        """Softmax does not see what all scores share; the weights sum to one."""
        attention = seeing.model.layers[2].self_attn
        prompt = attention.adaption_prompts["default"]
        image, query = torch.randn(1, 48), torch.randn(1, 6, 5, 8)
        of_layer = partial(image_keys_values, keys_values=partial(layer_keys_values, attention))
        blind, sees = (
            attend_to_heads(query, *prompt.gated_heads(*of_layer(prompts), 6))
            for prompts in (prompt.prompts[None], add_image(prompt.prompts, image))
        )
        value = attention.v_proj(image).unflatten(-1, (2, 8)).repeat_interleave(3, dim=1)
        extra = prompt.gate_opening[:, None, None] * value[:, :, None]
        torch.testing.assert_close(sees - blind, extra.expand_as(sees), rtol=1e-4, atol=1e-5)


class TestModel:
    @pytest.mark.parametrize("attn", ["sdpa", "eager"])
    def test_closed_gates_are_the_blind_llama_bit_for_bit(self, tiny, words, images, attn):
        model = tiny(attn_implementation=attn)
        blind = logits(model, words)
        add_vision(add_adaption_prompts(model, SMALL), DigitEncoder())
        assert torch.equal(logits(model, words, images=images), blind)

    def test_the_real_llama_with_closed_gates_is_blind_and_with_open_ones_sees(self, fresh_llama):
        model, tokenizer = fresh_llama
        batch = tokenizer(["What digit is in the picture?"] * 2, return_tensors="pt")
        pictures = torch.rand(2, 8, 8)
        blind = logits(model, **{"ids": batch["input_ids"]})
        add_vision(add_adaption_prompts(model, AdaptionPromptConfig(5, 3)), DigitEncoder())
        assert torch.equal(logits(model, batch["input_ids"], images=pictures), blind)
        open_gates(model, std=0.1)
        first, second = logits(model, batch["input_ids"], images=pictures)
        assert not torch.allclose(first, second, atol=1e-3)

    def test_without_a_picture_it_is_the_text_adapter_and_disabled_the_base(
        self, tiny, seeing, words, images
    ):
        text = add_adaption_prompts(tiny(attn_implementation="sdpa"), SMALL)
        for number, prompt in adapter_prompts(text, "default").items():
            prompt.load_state_dict(adapter_prompts(seeing, "default")[number].state_dict())
        assert torch.equal(logits(seeing, words), logits(text, words))
        assert not torch.allclose(logits(seeing, words, images=images), logits(text, words))
        base = logits(tiny(attn_implementation="sdpa"), words)
        with disable_adapter(seeing):
            assert torch.equal(logits(seeing, words, images=images), base)

    def test_each_row_sees_its_own_picture_alone(self, seeing, words, images):
        together = logits(seeing, words, images=images)
        for row in range(3):
            one = slice(row, row + 1)
            alone = logits(seeing, words[one], images=images[one])
            torch.testing.assert_close(together[one], alone)
        other = images.clone()
        other[1] = 1 - other[1]
        changed = (logits(seeing, words, images=other) - together).abs().amax(dim=(1, 2))
        assert (changed > 1e-4).tolist() == [False, True, False]

    def test_padding_on_the_left_changes_nothing(self, seeing, words, images):
        padded = nn.functional.pad(words, (2, 0))
        mask = nn.functional.pad(torch.ones_like(words), (2, 0))
        plain = seeing.generate(words, images=images, **GREEDY)
        left = seeing.generate(padded, attention_mask=mask, images=images, **GREEDY)
        assert torch.equal(left[:, 2:], plain)

    @pytest.mark.parametrize("beams", [1, 3])
    def test_generate_with_and_without_cache_together_and_alone(self, seeing, words, images, beams):
        options = {**GREEDY, "num_beams": beams}
        cached = seeing.generate(words, images=images, **options)
        assert torch.equal(
            cached, seeing.generate(words, images=images, use_cache=False, **options)
        )
        for row in range(3):
            one = slice(row, row + 1)
            assert torch.equal(
                seeing.generate(words[one], images=images[one], **options), cached[one]
            )
        assert not torch.equal(cached, seeing.generate(words, **options))

    def test_a_generation_encodes_the_picture_once_and_the_next_one_anew(
        self, seeing, words, images
    ):
        calls = []
        image_prompt_of(seeing).register_forward_hook(lambda *_: calls.append(1))
        first = seeing.generate(words, images=images, **GREEDY)
        assert len(calls) == 1
        flipped = seeing.generate(words, images=images.flip(0), **GREEDY)
        assert len(calls) == 2
        assert torch.equal(seeing.generate(words, images=images, **GREEDY), first)
        assert not torch.equal(flipped, first)

    def test_with_a_cache_each_call_shows_its_own_pictures(self, seeing, words, images):
        known = inspect.signature(seeing.forward).parameters
        argument = "cache" if "cache" in known else "past_key_values"

        def last_words(first, second):
            cache = {argument: DynamicCache(config=seeing.config)}
            logits(seeing, words[:, :4], images=first, **cache)
            return logits(seeing, words[:, 4:], images=second, **cache)

        def differ(one, other):
            return not torch.allclose(one, other, atol=1e-4)

        whole = logits(seeing, words, images=images)[:, 4:]
        torch.testing.assert_close(last_words(images, images), whole)
        torch.testing.assert_close(last_words(images, images.clone()), whole)
        torch.testing.assert_close(last_words(None, None), logits(seeing, words)[:, 4:])
        assert differ(last_words(images, images.flip(0)), whole)
        assert differ(last_words(images, None), whole)
        assert differ(last_words(None, images), last_words(None, None))

    @pytest.mark.parametrize("family", ["qwen3", "olmo2", "phi3", "gemma3_text", "mistral"])
    def test_other_decoders_see_row_by_row_too(self, tiny, words, images, family):
        model = tiny(family, attn_implementation="sdpa", **FAMILY_SETTINGS.get(family, {}))
        blind = logits(model, words)
        add_vision(add_adaption_prompts(model, SMALL), DigitEncoder())
        torch.testing.assert_close(logits(model, words, images=images), blind, rtol=0, atol=0)
        open_gates(model)
        together = logits(model, words, images=images)
        alone = logits(model, words[1:2], images=images[1:2])
        torch.testing.assert_close(together[1:2], alone)
        assert not torch.allclose(together, logits(model, words), atol=1e-4)

    def test_a_half_precision_base_keeps_encoder_and_projection_in_float32(
        self, seeing, words, images
    ):
        seeing.bfloat16()
        assert {p.dtype for p in vision_of(seeing).parameters()} == {torch.float32}
        assert logits(seeing, words, images=images).dtype == torch.bfloat16

    def test_a_copy_of_the_model_runs_with_its_own_encoder(self, seeing, words, images):
        twin = copy.deepcopy(seeing)
        before = logits(seeing, words, images=images)
        nn.init.normal_(image_prompt_of(seeing).projection[1].weight)
        assert torch.equal(logits(twin, words, images=images), before)
        assert not torch.allclose(logits(seeing, words, images=images), before)

    def test_prompt_weights_show_what_each_row_looks_at(self, seeing, words, images):
        weights = prompt_weights(seeing, words, images=images)
        alone = prompt_weights(seeing, words[1:2], images=images[1:2])
        for number in (1, 2):
            assert weights[number].shape == (3, 6, 6, 4)
            torch.testing.assert_close(weights[number][1:2], alone[number])


class TestLearning:
    def test_gates_learn_first_then_prompts_and_encoder_and_the_base_never(
        self, tiny, words, images
    ):
        model = add_vision(add_adaption_prompts(tiny(), SMALL), DigitEncoder())

        def gradients():
            model.zero_grad()
            model(words, images=images, labels=words).loss.backward()
            return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

        first = gradients()
        assert all(("adaption_prompts" in name) or ("vision" in name) for name in first)
        assert all(grad.any() == name.endswith("gate") for name, grad in first.items())
        open_gates(model)
        second = gradients()
        assert all(grad.any() for grad in second.values())
        assert {n for n in second if "vision" in n} == {
            n for n, _ in model.named_parameters() if "vision" in n
        }

    def test_gradient_checkpointing_gives_the_same_gradients(self, seeing, words, images):
        def gradients():
            seeing.zero_grad()
            seeing(words, images=images, labels=words).loss.backward()
            return {n: p.grad.clone() for n, p in seeing.named_parameters() if p.requires_grad}

        seeing.train()
        plain = gradients()
        seeing.gradient_checkpointing_enable({"use_reentrant": False})
        torch.testing.assert_close(gradients(), plain)

    def test_a_clip_stays_frozen_and_its_projection_learns(self, tiny, words):
        model = add_vision(add_adaption_prompts(tiny(), SMALL), clip_encoder())
        open_gates(model)
        model(words, images=torch.rand(3, 3, 16, 16), labels=words).loss.backward()
        learns = {n for n, p in vision_of(model).named_parameters() if p.grad is not None}
        assert learns == {n for n, _ in vision_of(model).named_parameters() if "projection" in n}

    def test_a_small_llama_learns_to_tell_pictures_apart(self, tiny):
        model = add_adaption_prompts(tiny(vocab_size=96), AdaptionPromptConfig(4, 3))
        add_vision(model, DigitEncoder())
        images = torch.rand(4, 8, 8)
        batch = {
            "input_ids": torch.tensor([[5, 6, word] for word in (10, 20, 30, 40)]),
            "attention_mask": torch.ones(4, 3, dtype=torch.long),
            "labels": torch.tensor([[-100, -100, word] for word in (10, 20, 30, 40)]),
        }
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        for _ in range(60):
            answer_loss(partial(model, images=images), batch).backward()
            optimizer.step()
            optimizer.zero_grad()
        said = model.generate(
            torch.tensor([[5, 6]] * 4), images=images, do_sample=False, max_new_tokens=1
        )
        assert said[:, -1].tolist() == [10, 20, 30, 40]


class TestClip:
    def test_features_are_the_class_tokens_after_the_chosen_layers(self):
        encoder = clip_encoder(layers=(0, 2)).eval()
        pictures = torch.rand(2, 3, 16, 16)
        states = encoder.clip(pixel_values=pictures, output_hidden_states=True).hidden_states
        first, second = encoder(pictures)
        assert torch.equal(first, states[0][:, 0])
        assert torch.equal(second, states[2][:, 0])
        assert encoder.feature_widths == (32, 32)

    @pytest.mark.parametrize("layers", [(), (4,), (-1,)])
    def test_layers_it_does_not_have_are_refused(self, layers):
        with pytest.raises(ValueError, match="choose at least one of 0 to 3"):
            clip_encoder(layers)


class TestBadInput:
    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            (torch.rand(3, 9, 8), r"expected a tensor of shape \(batch, 8, 8\), got \(3, 9, 8\)"),
            (torch.rand(3, 1, 8, 8), r"got \(3, 1, 8, 8\)"),
            (torch.rand(8, 8), "one picture needs a batch axis too"),
            (torch.zeros(3, 8, 8, dtype=torch.uint8), "expected floating point numbers"),
            ([[0.0] * 8] * 8, "got list"),
            (torch.rand(2, 8, 8), "2 images for 3 texts"),
            (torch.rand(6, 8, 8), "6 images for 3 texts"),
        ],
    )
    def test_wrong_pictures_get_a_clear_error(self, seeing, words, wrong, message):
        with pytest.raises(ValueError, match=message):
            seeing(words, images=wrong)

    def test_an_adapter_that_cannot_see_says_so(self, seeing, words, images):
        add_adaption_prompts(seeing, SMALL, "text")
        with pytest.raises(
            ValueError, match=r"'text' has no image encoder.*\['default'\] have one"
        ):
            seeing(words, images=images)
        set_adapter(seeing, "default")
        assert logits(seeing, words, images=images).isfinite().all()

    def test_models_without_adapter_or_with_an_encoder_are_refused(self, tiny, seeing):
        with pytest.raises(ValueError, match="call add_adaption_prompts"):
            add_vision(tiny(), DigitEncoder())
        with pytest.raises(ValueError, match="has an image encoder already"):
            add_vision(seeing, DigitEncoder())
        with pytest.raises(ValueError, match="no adapter named 'other'"):
            add_vision(seeing, DigitEncoder(), "other")


class TestSaving:
    def test_adapter_and_vision_come_back_in_another_model(
        self, tiny, seeing, words, images, tmp_path
    ):
        save_adapter(seeing, tmp_path)
        base = tiny(attn_implementation="sdpa")
        fresh = load_adapter(base, tmp_path, encoder=DigitEncoder())
        assert torch.equal(
            logits(fresh, words, images=images), logits(seeing, words, images=images)
        )
        assert not list(tmp_path.glob(".saving-*"))

    def test_a_frozen_clip_is_not_saved(self, tiny, tmp_path):
        model = add_vision(add_adaption_prompts(tiny(), SMALL), clip_encoder())
        save_adapter(model, tmp_path)
        size = (tmp_path / "vision_model.safetensors").stat().st_size
        assert size < 4 * (64 * 48 + 48 + 2 * 64) + 1000
        fresh = load_adapter(tiny(), tmp_path, encoder=clip_encoder())
        for part, saved in image_prompt_of(model).projection.state_dict().items():
            assert torch.equal(image_prompt_of(fresh).projection.state_dict()[part], saved)

    def test_an_interrupted_save_leaves_the_earlier_one_whole(self, seeing, tmp_path, monkeypatch):
        save_adapter(seeing, tmp_path)
        earlier = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
        nn.init.zeros_(image_prompt_of(seeing).projection[1].weight)

        def full_disk(_):
            raise OSError("no space left")

        monkeypatch.setattr(os, "fsync", full_disk)
        with pytest.raises(OSError, match="no space left"):
            save_adapter(seeing, tmp_path)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == earlier

    @pytest.mark.parametrize(
        "case", ["cut short", "other encoder", "other base", "no file", "json"]
    )
    def test_files_that_do_not_fit_are_refused_and_the_model_is_as_it_was(
        self, tiny, seeing, tmp_path, case
    ):
        save_adapter(seeing, tmp_path)
        weights, settings = tmp_path / "vision_model.safetensors", tmp_path / "vision_config.json"
        encoder, model = DigitEncoder(), tiny()
        error, message = AdapterFileError, "was cut short"
        if case == "cut short":
            weights.write_bytes(weights.read_bytes()[:-100])
        elif case == "other encoder":
            encoder, message = clip_encoder(), "encoder 'DigitEncoder', here it is 'ClipEncoder'"
        elif case == "other base":
            model = tiny(hidden_size=96)
            message = "hidden_size"
        elif case == "no file":
            settings.unlink()
            error, message = FileNotFoundError, "vision_config.json is missing"
        else:
            settings.write_text("[]")
            message = "not the settings file"
        with pytest.raises(error, match=message):
            load_adapter(model, tmp_path, encoder=encoder)
        assert not vision_of(model) and not adapter_configs(model)

    def test_weights_of_another_shape_are_refused(self, tiny, seeing, tmp_path):
        save_adapter(seeing, tmp_path)
        other = DigitEncoder()
        other.fine = nn.Conv2d(1, 32, kernel_size=5, padding=2)
        with pytest.raises(AdapterFileError, match=r"fine.weight is \(32, 1, 3, 3\), expected"):
            load_adapter(tiny(), tmp_path, encoder=other)

    @pytest.mark.parametrize(
        ("layers", "message"),
        [(9, "of another adapter"), (0, "of another adapter"), ("all", "must be a number")],
    )
    def test_layers_that_the_adapter_has_not_are_refused(
        self, tiny, seeing, tmp_path, layers, message
    ):
        save_adapter(seeing, tmp_path)
        settings = tmp_path / "vision_config.json"
        settings.write_text(json.dumps(json.loads(settings.read_text()) | {"layers": layers}))
        with pytest.raises(AdapterFileError, match=message):
            load_adapter(tiny(), tmp_path, encoder=DigitEncoder())

    def test_an_adapter_that_sees_is_neither_loaded_nor_saved_blind(self, tiny, seeing, tmp_path):
        save_adapter(seeing, tmp_path / "seeing")
        save_adapter(add_adaption_prompts(tiny(), SMALL), tmp_path / "blind")
        model = tiny()
        with pytest.raises(ValueError, match=r"sees pictures.*encoder=DigitEncoder"):
            load_adapter(model, tmp_path / "seeing")
        with pytest.raises(ValueError, match="without an image encoder"):
            load_adapter(model, tmp_path / "blind", encoder=DigitEncoder())
        assert not adapter_configs(model)
        with pytest.raises(ValueError, match="would be blind"):
            save_adapter(seeing, tmp_path / "peft", format="litgpt")

    def test_an_adapter_that_waits_for_another_is_saved_whole(
        self, tiny, seeing, words, images, tmp_path
    ):
        seen = logits(seeing, words, images=images)
        add_adaption_prompts(seeing, SMALL, "text")
        save_adapter(seeing, tmp_path, "default")
        base = tiny(attn_implementation="sdpa")
        fresh = load_adapter(base, tmp_path, encoder=DigitEncoder())
        assert torch.equal(logits(fresh, words, images=images), seen)


class TestDigits:
    def test_no_test_picture_is_a_training_picture_and_both_hold_all_digits(self):
        train, train_digits_ = digit_pictures("train")
        test, test_digits = digit_pictures("test")
        assert (len(train), len(test)) == (1437, 360)
        assert set(train_digits_) == set(test_digits) == set(range(10))
        assert (train.min(), train.max(), train.dtype) == (0, 1, torch.float32)
        seen = {picture.numpy().tobytes() for picture in train}
        assert not any(picture.numpy().tobytes() in seen for picture in test)

    def test_held_out_pairs_never_occur_in_training(self):
        digits = list(range(10))
        train, held = questions_about(digits), questions_about(digits, held_out=True)
        assert {(q.kind, q.picture) for q in held} == HELD_OUT
        assert {(q.kind, q.picture) for q in train}.isdisjoint(HELD_OUT)
        assert len(train) + len(held) == 10 * len(QUESTIONS)

    def test_answers_are_right(self):
        said = {(q.kind, q.picture): q.answer for q in questions_about(range(10))}
        assert [said["digit", digit] for digit in (0, 9)] == ["zero", "nine"]
        assert [said["parity", digit] for digit in (0, 9)] == ["even", "odd"]
        assert [said["after", digit] for digit in (0, 9)] == ["one", "ten"]

    def test_a_batch_learns_the_answer_and_its_end_only(self, llama):
        _, tokenizer = llama
        questions = questions_about([6, 9])
        batch = question_batch(questions, torch.rand(2, 8, 8), tokenizer)
        assert batch["images"].shape == (6, 8, 8)
        for question, labels in zip(questions, batch["labels"], strict=True):
            assert tokenizer.decode(labels[labels != -100]) == f" {question.answer}<|im_end|>"

    def test_every_answer_is_one_token(self, llama):
        _, tokenizer = llama
        answers = {q.answer for held in (0, 1) for q in questions_about(range(10), held_out=held)}
        assert {len(tokenizer(" " + answer)["input_ids"]) for answer in answers} == {1}

    def test_unknown_split_is_refused(self):
        with pytest.raises(ValueError, match='expected "train" or "test"'):
            digit_pictures("validation")

    def test_adapted_layers_alone_compute_what_the_whole_model_does(self, seeing, words, images):
        with torch.no_grad():
            whole = seeing(words, images=images, output_hidden_states=True)
            with adapted_layers_alone(seeing):
                assert len(seeing.model.layers) == 2
                states = whole.hidden_states[1]
                upper = seeing(inputs_embeds=states, images=images, use_cache=False).logits
        torch.testing.assert_close(upper, whole.logits)
        assert len(seeing.model.layers) == 3

    def test_three_steps_on_the_real_llama_lower_the_loss(self, fresh_llama):
        model, tokenizer = fresh_llama
        torch.manual_seed(0)
        add_vision(add_adaption_prompts(model, AdaptionPromptConfig(4, 2)), DigitEncoder())
        losses = train_digits(model, tokenizer, TrainingConfig(3, 8, warmup_steps=0))
        assert losses[2] < losses[0]
        images, digits = digit_pictures("test")
        questions = questions_about(digits[:2])
        words = answer_words(model, tokenizer, questions, images, batch_size=4)
        assert len(words) == len(questions)
        scores = accuracy(questions, [question.answer for question in questions])
        assert set(scores.values()) == {1.0}


def test_stored_scores_are_the_means_of_their_runs_and_pass_the_quality_bar():
    path = files("llama_adapter_edu") / "course/results/vision.json"
    stored = json.loads(path.read_text())
    for pairs, scores in stored["mean"].items():
        for kind, mean in scores.items():
            assert mean == pytest.approx(fmean(run[pairs][kind] for run in stored["runs"]))
    assert stored["mean"]["seen_pairs"]["digit"] >= 0.97


FAMILY_SETTINGS = {"qwen3": {"head_dim": 8}, "gemma3_text": {"head_dim": 8}}
