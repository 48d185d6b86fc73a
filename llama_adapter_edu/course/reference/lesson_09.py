"""Solutions of lesson 09: what a failed check falls back to.

Generated from solutions/09_a_llama_that_sees.py by tools/build.py; edit that file, not this one.
"""
# ruff: noqa
# fmt: off

EXERCISES = {'9.1': 'image_vector', '9.2': 'add_image', '9.3': 'image_keys_values', '9.4': 'attend_row_by_row'}
CHECKS = {'9.1': '9c3b61fa62e6', '9.2': '83982d7fee94', '9.3': '79373c6f4760', '9.4': '5092ee750d60'}

from llama_adapter_edu.vision.attach import image_vector
from llama_adapter_edu.method.image_prompts import add_image
from llama_adapter_edu.method.image_prompts import image_keys_values
from llama_adapter_edu.method.image_prompts import attend_row_by_row
