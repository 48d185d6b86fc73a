"""Training the digits lesson, and asking the trained model.

Shapes: b batch, n pictures, y and x a picture's rows and columns, s token positions, m model width.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from llama_adapter_edu.adapters.choice import active_adapter
from llama_adapter_edu.adapters.decoder import decoder_of
from llama_adapter_edu.adapters.manage import adapter_prompts
from llama_adapter_edu.course.tasks.digits import (
    Question,
    digit_pictures,
    encode_question,
    question_batch,
    questions_about,
    shuffled_batches,
)
from llama_adapter_edu.training.config import TrainingConfig, learning_rate_factor
from llama_adapter_edu.training.loss import answer_loss
from llama_adapter_edu.vision.attach import vision_of


def train_digits(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: TrainingConfig,
    *,
    vision_learning_rate: float = 3e-3,
) -> list[float]:
    """Train prompts, gates and the image encoder together, in place.

    Below the lowest adapted layer nothing depends on the picture. There the few different texts are
    computed once, and the steps go through the layers above only.

    Args:
        model: with `add_adaption_prompts` and `add_vision`.
        config: `learning_rate` is that of prompts and gates.
        vision_learning_rate: of encoder and projection.

    Returns:
        the loss of each step.
    """
    images, digits = digit_pictures("train")
    questions = questions_about(digits)
    number, texts, states = _texts_below_the_prompts(model, tokenizer, questions)
    of_vision = [p for p in vision_of(model).parameters() if p.requires_grad]
    ids = {id(p) for p in of_vision}
    of_prompts = [p for p in model.parameters() if p.requires_grad and id(p) not in ids]
    groups = [
        {"params": of_prompts, "lr": config.learning_rate},
        {"params": of_vision, "lr": vision_learning_rate},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_factor(step, config.steps, config.warmup_steps)
    )
    losses = []
    batches = shuffled_batches(questions, config.batch_size, config.seed)
    with adapted_layers_alone(model):
        for asked in islice(batches, config.steps):
            rows = [number[question.text, question.answer] for question in asked]
            shown = images[[question.picture for question in asked]].to(model.device)
            batch = {name: tensor[rows] for name, tensor in texts.items()}
            loss = answer_loss(partial(_from_states, model, states[rows], shown), batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(of_prompts + of_vision, config.max_grad_norm)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    return losses


@contextmanager
def adapted_layers_alone(model: PreTrainedModel) -> Iterator[None]:
    """Inside the block the decoder has its layers from the lowest adapted one on, and no others.

    It then takes `inputs_embeds`: what that layer is given in the whole model. Without a cache.
    """
    decoder = decoder_of(model)
    layers, lowest = decoder.layers, min(adapter_prompts(model, active_adapter(model)))
    decoder.layers = layers[lowest:]
    try:
        yield
    finally:
        decoder.layers = layers


def _texts_below_the_prompts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: Sequence[Question]
) -> tuple[dict[tuple[str, str], int], dict[str, Tensor], Float[Tensor, "b s m"]]:
    """The different texts: {(question, answer): row}, their batch, and the input of the lowest
    adapted layer.
    """
    different = list({(q.text, q.answer): q for q in questions}.values())
    batch = question_batch(different, None, tokenizer)
    batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
    words = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        states = model(**words, use_cache=False, output_hidden_states=True).hidden_states
    lowest = min(adapter_prompts(model, active_adapter(model)))
    return {(q.text, q.answer): row for row, q in enumerate(different)}, batch, states[lowest]


def _from_states(
    model: PreTrainedModel,
    states: Float[Tensor, "b s m"],
    images: Float[Tensor, "b y x"],
    *,
    input_ids: Tensor,
    **inputs,
):
    """The forward of `adapted_layers_alone`; `input_ids` are in `states` already."""
    return model(inputs_embeds=states, images=images, **inputs)


def answer_words(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Question],
    images: Float[Tensor, "n y x"] | None,
    batch_size: int = 120,
) -> list[str]:
    """The word that the model itself would say first, for each question; blind without images."""
    one_word = GenerationConfig(
        do_sample=False, max_new_tokens=1, pad_token_id=tokenizer.pad_token_id
    )
    words = []
    for start in range(0, len(questions), batch_size):
        rows = questions[start : start + batch_size]
        ids = {"input_ids": [encode_question(tokenizer, row.text) for row in rows]}
        batch = tokenizer.pad(ids, padding_side="left", return_tensors="pt").to(model.device)
        if images is not None:
            batch["images"] = images[[row.picture for row in rows]].to(model.device)
        said = model.generate(**batch, generation_config=one_word)
        words += [tokenizer.decode(token).strip() for token in said[:, -1]]
    return words
