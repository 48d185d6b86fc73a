"""Rows of text -> token ids -> batches; and answers of a model, compared with the right ones.

`instructions.py` reads rows from files and the hub, `rows.py` says what a row may be, `chats.py`
turns it into text, `encoding.py` into tokens, `batches.py` many into a batch; `evaluate.py` scores.
"""

from .batches import collate as collate
from .encoding import encode_dataset as encode_dataset
from .encoding import format_prompt as format_prompt
from .evaluate import exact_match as exact_match
from .evaluate import generate_answers as generate_answers
