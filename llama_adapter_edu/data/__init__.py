"""Rows of text -> token ids -> batches; and answers of a model, compared with the right ones.

`instructions.py` reads rows from files and the hub, `rows.py` says what a row may be, `chats.py`
turns it into text, `encoding.py` into tokens, `batches.py` many into a batch; `evaluate.py` scores.
"""
