"""Solutions of lesson 09: what a failed check falls back to.

Generated from solutions/09_a_llama_that_sees.py by tools/build.py; edit that file, not this one.
"""
# ruff: noqa
# fmt: off

EXERCISES = {'9.1': 'image_vector', '9.2': 'add_image', '9.3': 'image_keys_values', '9.4': 'attend_row_by_row'}
CHECKS = {'9.1': '87abcab91a58', '9.2': '744999d71573', '9.3': 'e2f87eed6828', '9.4': '316112119709'}
STUBS = {'9.1': 'c94ba20347b4', '9.2': '87b0c2cdedb9', '9.3': 'cc3191ca0048', '9.4': '9dd0e2ef85f7'}
GIVEN = ('LAYERS', '_', 'added', 'answers', 'asked', 'attention', 'ax', 'axes', 'bare', 'bars', 'blind', 'blind_part', 'by_hand', 'chosen', 'clip', 'closed', 'coarse', 'colour', 'difference', 'digit', 'digits', 'drawn', 'encoder', 'features', 'few', 'file', 'fine', 'folder', 'gates', 'grid', 'guess', 'hatch', 'head', 'heights', 'held_kind', 'here', 'i', 'ids', 'image', 'images', 'kind', 'layer', 'learns', 'llama', 'loaded', 'look', 'looks', 'losses', 'loudness', 'lowest', 'name', 'names', 'never', 'no_picture', 'number', 'of_all_vision', 'of_digit', 'of_encoder', 'of_image', 'of_layer', 'on_gpu', 'p', 'pair', 'photos', 'picture', 'place', 'places', 'prompt', 'q', 'query', 'question', 'right', 'row', 'run', 'said', 'same', 'scale', 'score', 'scores', 'seeing_part', 'seen', 'shown', 'shuffled', 'sizes', 'some', 'stored', 'test_digits', 'test_images', 'text', 'title', 'token', 'token_ids', 'tokenizer', 'top', 'total', 'trainable', 'trained', 'training', 'two', 'value', 'value_proj', 'w', 'weights', 'with_image', 'without', 'words', 'words_only', 'wrong_picture', 'x')

from llama_adapter_edu.vision.attach import image_vector
from llama_adapter_edu.method.image_prompts import add_image
from llama_adapter_edu.method.image_prompts import image_keys_values
from llama_adapter_edu.method.image_prompts import attend_row_by_row
