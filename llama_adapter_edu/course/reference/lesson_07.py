"""Solutions of lesson 07: what a failed check falls back to.

Generated from solutions/07_instruction_data.py by tools/build.py; edit that file, not this one.
"""
# ruff: noqa
# fmt: off

EXERCISES = {'7.1': 'encode_row', '7.2': 'collate', '7.3': 'exact_match', '7.4': 'group_split'}
CHECKS = {'7.1': '6a0f5d3a8e40', '7.2': 'f2ef6343bd33', '7.3': '6564692ae119', '7.4': 'aeadeae3e773'}
STUBS = {'7.1': '854be5ec90c0', '7.2': '0d8423b711a0', '7.3': '2a1cc0af95fc', '7.4': '981f81ed4c7c'}
GIVEN = ('GAPS', 'KINDS', '_', 'alone', 'answer', 'answers', 'as_packed', 'ax', 'axes', 'bars', 'batch', 'batches', 'both', 'boxes', 'broken', 'cells', 'colour', 'columns', 'commands', 'commands_of_test', 'examples', 'expected', 'expected_rooms', 'fig', 'first', 'folder', 'four', 'grouped', 'heights', 'i', 'ids', 'in_random_order', 'kind', 'label', 'left', 'lengths', 'like', 'line', 'longest', 'loss', 'losses', 'mine', 'mixed', 'model', 'my_file', 'n_learnt', 'n_tokens', 'name', 'names', 'number', 'numbers', 'one', 'ones', 'order', 'out', 'packed', 'packed_lengths', 'packed_rows', 'padded', 'pair', 'pairs', 'palette', 'patches', 'phrasing', 'phrasing_cells', 'phrasings', 'places', 'program', 'prompt', 'prompts', 'random_cells', 'right', 'room', 'room_cells', 'rooms', 'row', 'rows', 'score', 'scores', 'seen', 'share', 'shares', 'shift', 'side', 'sizes', 'spelled', 'splits', 'style', 'table', 'test', 'text', 'texts', 'three', 'title', 'together', 'token', 'token_ids', 'tokenizer', 'train', 'train_rows', 'with_mask', 'words', 'x')

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
