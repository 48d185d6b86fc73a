"""Solutions of lesson 09: what a failed check falls back to.

Generated from solutions/09_a_llama_that_sees.py by tools/build.py; edit that file, not this one.
"""
# ruff: noqa
# fmt: off

EXERCISES = {'9.1': 'image_vector', '9.2': 'add_image', '9.3': 'image_keys_values', '9.4': 'attend_row_by_row'}

from llama_adapter_edu.vision import image_vector
from llama_adapter_edu.image_prompts import add_image
from llama_adapter_edu.image_prompts import image_keys_values
from llama_adapter_edu.image_prompts import attend_row_by_row
