"""Solutions of lesson 07: what a failed check falls back to.

Generated from solutions/07_instruction_data.py by tools/build.py; edit that file, not this one.
"""
# ruff: noqa
# fmt: off

EXERCISES = {'7.1': 'encode_row', '7.2': 'collate', '7.3': 'exact_match', '7.4': 'group_split'}
CHECKS = {'7.1': 'c3e99a5f555f', '7.2': 'a8647efbc318', '7.3': '05bd4ba6ad95', '7.4': '0e097eaadc12'}

import random
from collections.abc import Sequence
from llama_adapter_edu.data.encoding import IGNORE_INDEX
from llama_adapter_edu.data.encoding import encode_prompt
from transformers import PreTrainedTokenizerBase
from llama_adapter_edu.data.batches import collate
from llama_adapter_edu.data.evaluate import exact_match


def encode_row(
    tokenizer: PreTrainedTokenizerBase, instruction: str, output: str
) -> dict[str, list[int]]:
    """One row as `input_ids` (s) and `labels` (s): prompt, answer, closing token.

    The labels are IGNORE_INDEX on the prompt. On the answer and its closing token they are the ids.
    """
    prompt = encode_prompt(tokenizer, instruction)
    answer = tokenizer(output, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    return {"input_ids": prompt + answer, "labels": [IGNORE_INDEX] * len(prompt) + answer}


def group_split(
    groups: Sequence[str], test_share: float, seed: int = 0
) -> tuple[list[int], list[int]]:
    """Row numbers for training and for the test, in order; no group is on both sides.

    `groups` names the group of each row. `test_share` (0 to 1) of the groups go to the test.
    """
    names = sorted(set(groups))
    random.Random(seed).shuffle(names)
    held_out = set(names[: round(test_share * len(names))])
    train = [row for row, group in enumerate(groups) if group not in held_out]
    test = [row for row, group in enumerate(groups) if group in held_out]
    return train, test
