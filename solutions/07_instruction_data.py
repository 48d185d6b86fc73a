# %% [markdown]
# # Lesson 07: Instruction data
#
# *60 minutes. Needs lesson 06.*
#
# At the end you will have
#
# * turned commands into batches, and seen token by token what the Llama is asked to learn,
# * a metric that cannot be talked into a better score,
# * measured a leak: a test that a list of rooms passes with almost full marks.
#
# Shapes: `b` batch, `s` query position, `t` key position. Everything else here is a list.

# %% tags=["nbval-ignore-output"]
import copy
import difflib
import json
import random
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import llama_adapter_edu as edu
import matplotlib.pyplot as plt
import torch
from datasets import Dataset, disable_progress_bars
from einops import rearrange, repeat
from jaxtyping import Float, Int
from llama_adapter_edu import encode_dataset, load_instructions
from llama_adapter_edu.adapters.manage import adapter_prompts
from llama_adapter_edu.course import assert_close, assert_shape, check, predict, unpacked
from llama_adapter_edu.course.figures import BLUE, ORANGE, heatmap, use_style
from llama_adapter_edu.course.tasks.home_commands import home_commands
from llama_adapter_edu.course.tasks.packing import collate_packed, pack, padding_share
from llama_adapter_edu.data.batches import length_grouped_batches
from llama_adapter_edu.data.encoding import IGNORE_INDEX, encode, encode_prompt, format_prompt
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

use_style()
disable_progress_bars()
model, tokenizer = edu.load_llama()
folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)

# %% [markdown]
# ## Rows
#
# Data for instructions comes as a table. Stanford's Alpaca gave it three columns, and everybody
# kept them: `instruction`, `input` for a text to work on (often empty), `output`. The table is a
# `Dataset` of the library `datasets`. Here is the one that you met in lesson 00.

# %%
commands = home_commands("train", 60)
print(commands.column_names, len(commands), "rows\n")
for row in commands.select(range(2)):
    print(row["instruction"], "\n   ->", row["output"])

# %% [markdown]
# Your own data gets there in three ways. First: a **generator**. It makes one row after the other.


# %%
def counting() -> Iterator[dict[str, str]]:
    """60 rows as "Count from 3 to 6" -> "3, 4, 5, 6"; some are short and some are long."""
    rng = random.Random(0)
    for _ in range(60):
        first = rng.randint(1, 60)
        last = first + rng.randint(2, 40)
        numbers = ", ".join(str(number) for number in range(first, last + 1))
        yield {"instruction": f"Count from {first} to {last}", "input": "", "output": numbers}


numbers = Dataset.from_generator(counting, cache_dir=folder.name)
print(numbers[0])

# %% [markdown]
# Second: a **file**. A `.json` file holds a list of rows, a `.jsonl` file one row a line. Third:
# the **Hugging Face hub**, where `datasets.load_dataset` finds a data set by its id. The library's
# `load_instructions` takes all of them.
#
# The next cell writes a file and loads it. With a network you may load `"tatsu-lab/alpaca"` in the
# same way, instead of `my_file`. Those are the 52 thousand rows of the paper.

# %%
my_file = Path(folder.name, "numbers.jsonl")
my_file.write_text("\n".join(json.dumps(row) for row in numbers), encoding="utf-8")
rows = load_instructions(my_file)
print(rows.column_names, len(rows), "rows")

# %% [markdown]
# Real files have flaws. A good loader stops at once and says where. Otherwise you find out after
# an hour of training, or never.

# %%
broken = Path(folder.name, "broken.jsonl")
broken.write_text('{"instruction": "Say hi", "output": "hi"}\n{"instruction": "Add", "output": 5}')
try:
    load_instructions(broken)
except ValueError as error:
    print(str(error).replace(str(broken), broken.name))

# %% [markdown]
# ## From a row to a text
#
# A Llama reads one text. So instruction and answer must become one, with marks that say who
# speaks. This is the **template**. A chat model brings its own, in the tokenizer. Use exactly the
# marks that the model was trained with: to it, other marks are just unknown text.

# %%
first = commands[0]
print(format_prompt(tokenizer, first["instruction"]))

# %% [markdown]
# It ends where the assistant's turn begins. The Llama would go on from there. The text in the
# system turn is written by this model's template itself.
#
# The model does not see letters but **tokens**: numbers from 0 to 49,151. Each mark is one token.

# %% tags=["nbval-ignore-output"]
of_mark = predict("`<|im_end|>` is 1 token. How many is it with a space after the `<`?", mine=...)

# %%
prompt = encode_prompt(tokenizer, first["instruction"])
for token in prompt[20:28]:
    print(f"{token:6}  {tokenizer.decode(token)!r}")
spelled = tokenizer("< |im_end|>").input_ids
print(f"\n<|im_end|> is 1 token; with a space in it, {len(spelled)} tokens and no mark")

# %% tags=["nbval-ignore-output"]
of_mark.compare(len(spelled))

# %% [markdown]
# ## Which tokens are learnt
#
# The text goes on with the answer, and then with the closing token `<|im_end|>`. In training, the
# model guesses each token from those before it. But we do not want it to learn to write commands.
# People will write those. It should learn to write answers, **and to stop**.
#
# So a row gets a second list, the **labels**. A label is the token to be guessed. The label −100
# means: no loss here. Why −100? It is what PyTorch's cross entropy leaves out, unless told
# otherwise. We call it `IGNORE_INDEX`.

# %% [markdown] tags=["card"]
# ### Exercise 7.1 · The label mask
#
# *medium ●●○ · 10 minutes*
#
# Return the ids of a row and its labels: `encode_prompt` gives the prompt's ids, `tokenizer` the
# answer's. Turn prompt and answer into tokens one by one, so that no token spans the border. Close
# with `tokenizer.eos_token_id`. The model shifts the labels by itself.
#
# ![A row of tokens: a prompt, an answer of three tokens, a closing token. Below them the labels:
# minus 100 under each token of the prompt, and the ids themselves under the answer and the closing
# token.](figures/07_labels.svg)
#
# <details><summary>Hint 1: direction</summary>
#
# Make two lists: the prompt's ids, and the answer's ids with the closing token. Both results are
# built from them.
#
# </details>
# <details><summary>Hint 2: axes</summary>
#
# Lists are joined with `+`, and `[IGNORE_INDEX] * 3` is a list of three. Both results have as many
# entries as prompt and answer together.
#
# </details>
# <details><summary>Hint 3: a line with blanks</summary>
#
# `answer = tokenizer(output, add_special_tokens=False)["input_ids"] + [_____]`, then
# `labels = [IGNORE_INDEX] * len(_____) + _____`
#
# </details>


# %% tags=["exercise"]
def encode_row(
    tokenizer: PreTrainedTokenizerBase, instruction: str, output: str
) -> dict[str, list[int]]:
    """One row as `input_ids` (s) and `labels` (s): prompt, answer, closing token.

    The labels are IGNORE_INDEX on the prompt. On the answer and its closing token they are the ids.
    """
    ### BEGIN SOLUTION
    # ~ prompt = encode_prompt(tokenizer, instruction)
    # ~ answer = ...
    prompt = encode_prompt(tokenizer, instruction)
    answer = tokenizer(output, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    return {"input_ids": prompt + answer, "labels": [IGNORE_INDEX] * len(prompt) + answer}
    ### END SOLUTION


# %% tags=["check"]
@check(
    "7.1",
    "encode_row",
    instruction=["Say hello in French", "Begin with two empty lines", "Say nothing"],
    output=["Bonjour", "\n\nBonjour, mes amis" + ", et encore" * 9, ""],
    eos_token=["<|im_end|>", "<|endoftext|>", "<|im_end|>"],
)
def _(instruction, output, eos_token):
    spoken = tokenizer if eos_token == tokenizer.eos_token else copy.deepcopy(tokenizer)
    spoken.eos_token = eos_token
    row = encode_row(spoken, instruction, output)
    assert isinstance(row, Mapping) and set(row) == {"input_ids", "labels"}, (
        'return a dictionary, {"input_ids": ..., "labels": ...}'
    )
    said = "input_ids and labels are one list: what is masked in one is masked in the other"
    assert row["input_ids"] is not row["labels"], said
    numbers_only = all(not isinstance(x, str) for x in row["input_ids"])
    assert numbers_only, (
        "there are texts among the ids: tokenizer(...) is a dictionary, take its ids"
    )
    ids, labels = row["input_ids"], row["labels"]
    assert isinstance(ids, list) and isinstance(labels, list), "return plain lists of numbers"

    prompt, closing = encode_prompt(spoken, instruction), spoken.eos_token_id
    n, answer = len(prompt), [*spoken(output)["input_ids"], closing]
    assert ids[:n] == prompt or ids[: n - 1] != prompt[:-1], (
        "a token spans the border: the answer's first line break melted into the prompt's last "
        "one. Turn prompt and answer into tokens one by one"
    )
    assert ids[:n] == prompt, "the row should begin with the prompt's ids, from encode_prompt"
    assert ids != prompt + answer[:-1], (
        "the closing token is missing: the model would never learn to stop"
    )
    assert ids != [*prompt, *answer, closing], "the closing token stands there twice"
    assert ids[-1] == closing, (
        f"the row should end with tokenizer.eos_token_id, here {closing}, not {ids[-1]}"
    )
    text = spoken.decode([*prompt, *answer])
    assert ids == [*prompt, *answer], f"the whole row should read {text!r}: {spoken.decode(ids)!r}"

    assert len(ids) == len(labels), f"{len(ids)} ids, but {len(labels)} labels: one for each id"
    shifted = [IGNORE_INDEX] * (n - 1) + answer + [IGNORE_INDEX]
    assert labels != shifted, "the labels are shifted by one, but the model shifts them itself"
    assert labels[:n] != ids[:n], "the prompt is learnt, too: its labels should be IGNORE_INDEX"
    assert labels[:n] != [0] * n, "0 is the id of a real token; use IGNORE_INDEX, which is -100"
    assert labels[:n] == [IGNORE_INDEX] * n, "all labels of the prompt should be IGNORE_INDEX"
    assert labels[-1] == closing, (
        "the closing token has no label: the model would not learn to stop"
    )
    assert labels[n:] == answer, "the answer's labels are the answer's ids"


# %% [raw] tags=["wrong"] says="the prompt is learnt, too"
"""
def encode_row(tokenizer, instruction, output):
    prompt = encode_prompt(tokenizer, instruction)
    ids = prompt + tokenizer(output).input_ids + [tokenizer.eos_token_id]
    return {"input_ids": ids, "labels": list(ids)}
"""

# %% [raw] tags=["wrong"] says="the closing token is missing"
"""
def encode_row(tokenizer, instruction, output):
    prompt = encode_prompt(tokenizer, instruction)
    answer = tokenizer(output).input_ids
    return {"input_ids": prompt + answer, "labels": [IGNORE_INDEX] * len(prompt) + answer}
"""

# %% [raw] tags=["wrong"] says="the closing token has no label"
"""
def encode_row(tokenizer, instruction, output):
    prompt = encode_prompt(tokenizer, instruction)
    answer = tokenizer(output).input_ids
    labels = [IGNORE_INDEX] * len(prompt) + answer + [IGNORE_INDEX]
    return {"input_ids": prompt + answer + [tokenizer.eos_token_id], "labels": labels}
"""

# %% [raw] tags=["wrong"] says="the model shifts them itself"
"""
def encode_row(tokenizer, instruction, output):
    prompt = encode_prompt(tokenizer, instruction)
    answer = tokenizer(output).input_ids + [tokenizer.eos_token_id]
    labels = [IGNORE_INDEX] * (len(prompt) - 1) + answer + [IGNORE_INDEX]
    return {"input_ids": prompt + answer, "labels": labels}
"""

# %% [raw] tags=["wrong"] says="0 is the id of a real token"
"""
def encode_row(tokenizer, instruction, output):
    prompt = encode_prompt(tokenizer, instruction)
    answer = tokenizer(output).input_ids + [tokenizer.eos_token_id]
    return {"input_ids": prompt + answer, "labels": [0] * len(prompt) + answer}
"""

# %% [raw] tags=["wrong"] says="a token spans the border"
"""
def encode_row(tokenizer, instruction, output):
    n = len(encode_prompt(tokenizer, instruction))
    ids = tokenizer(format_prompt(tokenizer, instruction, response=output)).input_ids
    return {"input_ids": ids, "labels": [IGNORE_INDEX] * n + ids[n:]}
"""

# %% [raw] tags=["wrong"] says="one for each id"
"""
def encode_row(tokenizer, instruction, output):
    prompt = encode_prompt(tokenizer, instruction)
    answer = tokenizer(output).input_ids + [tokenizer.eos_token_id]
    return {"input_ids": prompt + answer, "labels": answer}
"""

# %% [raw] tags=["right"]
"""
def encode_row(tokenizer, instruction, output):
    ids, labels = [], []
    for token in encode_prompt(tokenizer, instruction):
        ids.append(token)
        labels.append(-100)
    for token in [*tokenizer(output)["input_ids"], tokenizer.eos_token_id]:
        ids.append(token)
        labels.append(token)
    return {"input_ids": ids, "labels": labels}
"""

# %% [raw] tags=["right"]
"""
def encode_row(tokenizer, instruction, output):
    prompt = encode_prompt(tokenizer, instruction)
    ids = prompt + tokenizer.encode(output + tokenizer.eos_token, add_special_tokens=False)
    labels = torch.tensor(ids)
    labels[: len(prompt)] = IGNORE_INDEX
    return {"input_ids": ids, "labels": labels.tolist()}
"""

# %% [markdown]
# The library's `encode` does the same. It also takes an `input`, and it complains about missing
# columns and about rows that are too long. Here is how much of a row is learnt.

# %%
mine = [encode_row(tokenizer, row["instruction"], row["output"]) for row in commands]
print("the same as the library's encode:", mine == [encode(row, tokenizer) for row in commands])
n_tokens = sum(len(row["labels"]) for row in mine)
n_learnt = sum(label != IGNORE_INDEX for row in mine for label in row["labels"])
print(f"{n_tokens} tokens in {len(mine)} rows; {n_learnt / n_tokens:.0%} of them are learnt")

# %% [markdown]
# ## A batch
#
# Rows have different lengths, and a tensor has not. So shorter rows are **padded**, on the right,
# up to the longest one. A padded position is no token of the row. Nobody may look at it, and
# nobody may learn it. So a batch is three tensors of shape `b s`: the ids, the labels, and the
# **attention mask**, which is 1 on tokens and 0 on padding.
#
# There is a trap. Many tokenizers have no padding token, and people take the closing token
# instead. Then you cannot tell from an id whether it is padding. Its place in the row tells it.

# %% [markdown] tags=["card"]
# ### Exercise 7.2 · The collator
#
# *medium ●●○ · 8 minutes*
#
# Make a batch of rows: `input_ids`, `attention_mask` and `labels`, padded on the right. A row's
# closing token may be the padding token, too. `pad_sequence` is PyTorch's: it pads a list of
# tensors with `padding_value` and stacks them if `batch_first=True`.
#
# <details><summary>Hint 1: direction</summary>
#
# One `pad_sequence` for each of the three, each with its own value for the padding. A mask for one
# row is a row of ones.
#
# </details>
# <details><summary>Hint 2: axes</summary>
#
# Each row is a tensor with the axis `s`. Ids are padded with `pad_token_id`, the mask with 0 and
# labels with `IGNORE_INDEX`. The results are `b s`.
#
# </details>
# <details><summary>Hint 3: a line with blanks</summary>
#
# `mask = [torch.ones_like(row) for row in _____]`, then
# `pad_sequence(_____, batch_first=True, padding_value=_____)` for each of the three.
#
# </details>


# %% tags=["exercise"] library="llama_adapter_edu.data.batches"
def collate(rows: Sequence[Mapping[str, Any]], pad_token_id: int) -> dict[str, Int[Tensor, "b s"]]:
    """Rows with `input_ids` and `labels` as one batch, padded on the right to the longest row.

    Returns `input_ids` (b s), `attention_mask` (b s): 1 on tokens, 0 on padding, and `labels`
    (b s): IGNORE_INDEX on padding.
    """
    if not rows:
        raise ValueError("A batch needs at least one row.")
    if pad_token_id is None:
        raise ValueError("pad_token_id is None: set tokenizer.pad_token, the eos token will do.")
    ### BEGIN SOLUTION
    # ~ ids = [torch.as_tensor(row["input_ids"]) for row in rows]
    # ~ labels = ...
    # ~ mask = ...
    ids = [torch.as_tensor(row["input_ids"]) for row in rows]
    labels = [torch.as_tensor(row["labels"]) for row in rows]
    # The mask comes from the lengths: the padding token may also be a row's closing token.
    mask = [torch.ones_like(row) for row in ids]
    return {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=pad_token_id),
        "attention_mask": pad_sequence(mask, batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORE_INDEX),
    }
    ### END SOLUTION


# %% tags=["check"]
@check("7.2", "collate", lengths=[[4, 2], [2, 5, 3]], pad_token_id=[9, 3])
def _(lengths, pad_token_id):
    # 9 is the closing token; in the first batch it is the padding token, too
    rows, b, s = [], len(lengths), max(lengths)
    for n in lengths:
        ids = [*torch.randint(4, 9, (n - 1,)).tolist(), 9]
        rows.append({"input_ids": ids, "labels": [IGNORE_INDEX, *ids[1:]], "instruction": "unused"})
    batch = collate(rows, pad_token_id=pad_token_id)
    names = {"input_ids", "attention_mask", "labels"}
    assert isinstance(batch, Mapping) and set(batch) == names, (
        f"return a dictionary with {', '.join(sorted(names))}"
    )
    for name in sorted(names):
        assert_shape(batch[name], "b s", b=b, s=s)

    def padded(lists, filler, left=False):
        gaps = [[filler] * (s - len(values)) for values in lists]
        both = zip(gaps, lists, strict=True) if left else zip(lists, gaps, strict=True)
        return torch.tensor([[*first, *second] for first, second in both])

    ids, labels = ([row[name] for row in rows] for name in ("input_ids", "labels"))
    right = padded(ids, pad_token_id)
    by_length = sorted(ids, key=len), sorted(ids, key=len, reverse=True)
    sort = "the rows are sorted by length: leave them in their order"
    mistakes = {sort: padded(next(x for x in by_length if x != ids), pad_token_id)} | {
        "pad on the right: the rows should begin in the first column": (
            padded(ids, pad_token_id, left=True)
        ),
        "the ids are padded with 0: give pad_sequence padding_value=pad_token_id": padded(ids, 0),
        "the ids are padded with IGNORE_INDEX; that is for labels": padded(ids, IGNORE_INDEX),
        "these are the labels; the ids of a row are in row['input_ids']": padded(
            labels, pad_token_id
        ),
    }
    assert_close(batch["input_ids"], right, "b s", mistakes=mistakes, what="input_ids")

    ones = [[1] * n for n in lengths]
    visible = padded(ones, 0)
    closing = "a closing token is hidden: take the mask from the lengths of the rows, not the ids"
    mistakes = {
        "padding is visible: the mask should be 0 there": torch.ones(b, s),
        "the mask is upside down: 1 on tokens, 0 on padding": 1 - visible,
        "the mask holds ids: it should be 1 on tokens, 0 on padding": padded(ids, 0),
        "the mask says what is learnt; it should be 1 on all tokens": (
            padded(labels, IGNORE_INDEX) != IGNORE_INDEX
        ).long(),
        "pad the mask with 0": padded(ones, pad_token_id),
    }
    if pad_token_id == 9:
        mistakes[closing] = (right != 9).long()
    assert_close(batch["attention_mask"], visible, "b s", mistakes=mistakes, what="attention_mask")

    right = padded(labels, IGNORE_INDEX)
    mistakes = {
        "padding is learnt: its labels should be IGNORE_INDEX": padded(labels, pad_token_id),
        "the labels are shifted, but the model shifts them itself": padded(
            [values[1:] for values in labels], IGNORE_INDEX
        ),
        "0 is the id of a real token; pad the labels with IGNORE_INDEX": padded(labels, 0),
        "these are the ids; the labels of a row are in row['labels']": padded(ids, IGNORE_INDEX),
        "these are the ids with their padding; a label of padding is IGNORE_INDEX": padded(
            ids, pad_token_id
        ),
    }
    if pad_token_id == 9:
        says = (
            "closing tokens are not learnt: pad the labels, do not search them for the padding id"
        )
        mistakes[says] = right.masked_fill(right == 9, IGNORE_INDEX)
    assert_close(batch["labels"], right, "b s", mistakes=mistakes, what="labels")

    batch = collate(rows, pad_token_id=0)
    assert_close(batch["input_ids"], padded(ids, 0), "b s", what="padded with 0, input_ids")


# %% [raw] tags=["wrong"] says="a closing token is hidden"
"""
def collate(rows, pad_token_id):
    ids = [torch.tensor(row["input_ids"]) for row in rows]
    labels = [torch.tensor(row["labels"]) for row in rows]
    ids = pad_sequence(ids, batch_first=True, padding_value=pad_token_id)
    return {
        "input_ids": ids,
        "attention_mask": (ids != pad_token_id).long(),
        "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORE_INDEX),
    }
"""

# %% [raw] tags=["wrong"] says="padding is learnt"
"""
def collate(rows, pad_token_id):
    ids = [torch.tensor(row["input_ids"]) for row in rows]
    labels = [torch.tensor(row["labels"]) for row in rows]
    return {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=pad_token_id),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        "labels": pad_sequence(labels, batch_first=True, padding_value=pad_token_id),
    }
"""

# %% [raw] tags=["wrong"] says="pad the labels with IGNORE_INDEX"
"""
def collate(rows, pad_token_id):
    ids = [torch.tensor(row["input_ids"]) for row in rows]
    labels = [torch.tensor(row["labels"]) for row in rows]
    return {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=pad_token_id),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        "labels": pad_sequence(labels, batch_first=True),
    }
"""

# %% [raw] tags=["wrong"] says="closing tokens are not learnt"
"""
def collate(rows, pad_token_id):
    ids = [torch.tensor(row["input_ids"]) for row in rows]
    labels = [torch.tensor(row["labels"]) for row in rows]
    labels = pad_sequence(labels, batch_first=True, padding_value=pad_token_id)
    return {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=pad_token_id),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        "labels": labels.masked_fill(labels == pad_token_id, IGNORE_INDEX),
    }
"""

# %% [raw] tags=["wrong"] says="pad on the right"
"""
def collate(rows, pad_token_id):
    longest = max(len(row["input_ids"]) for row in rows)
    gaps = [longest - len(row["input_ids"]) for row in rows]
    pairs = list(zip(rows, gaps))
    return {
        "input_ids": torch.tensor([[pad_token_id] * n + row["input_ids"] for row, n in pairs]),
        "attention_mask": torch.tensor([[0] * n + [1] * (longest - n) for n in gaps]),
        "labels": torch.tensor([[IGNORE_INDEX] * n + row["labels"] for row, n in pairs]),
    }
"""

# %% [raw] tags=["wrong"] says="padding is visible"
"""
def collate(rows, pad_token_id):
    ids = [torch.tensor(row["input_ids"]) for row in rows]
    labels = [torch.tensor(row["labels"]) for row in rows]
    ids = pad_sequence(ids, batch_first=True, padding_value=pad_token_id)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORE_INDEX),
    }
"""

# %% [raw] tags=["right"]
"""
def collate(rows, pad_token_id):
    longest = max(len(row["input_ids"]) for row in rows)
    ids = torch.full((len(rows), longest), pad_token_id)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, IGNORE_INDEX)
    for number, row in enumerate(rows):
        n = len(row["input_ids"])
        ids[number, :n] = torch.tensor(row["input_ids"])
        labels[number, :n] = torch.tensor(row["labels"])
        mask[number, :n] = 1
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
"""

# %% [raw] tags=["right"]
"""
def collate(rows, pad_token_id):
    longest = max(len(row["labels"]) for row in rows)

    def padded(values, filler):
        return list(values) + [filler] * (longest - len(values))

    return {
        "input_ids": torch.tensor([padded(row["input_ids"], pad_token_id) for row in rows]),
        "attention_mask": torch.tensor([padded([1] * len(row["labels"]), 0) for row in rows]),
        "labels": torch.tensor([padded(row["labels"], IGNORE_INDEX) for row in rows]),
    }
"""

# %% [markdown]
# Here is a batch of three rows, turned back into text. Each box is a token; `·` is a space and
# `↵` a line break. The orange ones are learnt.

# %%
# alt: Three rows of tokens. The chat marks and the command are grey, the JSON answer and its closing token are orange and bold, the padding at the end of the shorter rows is white and dashed.
KINDS = {"read, not learnt": "#E4E4E4", "learnt": "#FFC58A", "padding": "#FFFFFF"}


def draw_tokens(ax: Axes, batch: dict[str, Int[Tensor, "b s"]], width: int = 100) -> None:
    """Each row of a batch as boxes with text, in lines of `width` letters."""
    line = 0.0
    for ids, mask, labels in zip(*batch.values(), strict=True):
        column = 0
        for token, is_token, label in zip(ids, mask, labels, strict=True):
            text = tokenizer.decode(token).replace("\n", "↵").replace(" ", "·")
            text = text if is_token else "pad"
            learnt = bool(label != IGNORE_INDEX)
            colour = list(KINDS.values())[int(learnt) if is_token else 2]
            if column + len(text) > width:
                column, line = 0, line + 1
            box = {"facecolor": colour, "edgecolor": "#999999", "pad": 1.6, "lw": 0.6}
            if not is_token:
                box["ls"] = "--"
            style = {"family": "monospace", "weight": "bold" if learnt else "normal"}
            ax.text(column, line, text, fontsize=8, va="center", bbox=box, **style)
            column += len(text) + 1
        line += 1.7
    ax.set(xlim=(0, width + 1), ylim=(line - 0.9, -0.8))
    ax.axis("off")


examples = [commands[0], {"instruction": "Count from 3 to 6", "output": "3, 4, 5, 6"}, commands[3]]
three = [encode_row(tokenizer, row["instruction"], row["output"]) for row in examples]
batch = collate(three, tokenizer.pad_token_id)
fig, ax = plt.subplots(figsize=(7.4, 3.9))
draw_tokens(ax, batch)
boxes = [Patch(facecolor=colour, edgecolor="#999999") for colour in KINDS.values()]
fig.legend(boxes, KINDS, loc="outside lower center", ncols=3, frameon=False)
plt.show()

# %% [markdown]
# Does padding change what the Llama learns? Give it each row alone, and then all three at once.
# The loss is the mean over all **learnt tokens** of the batch. So the mean of the three losses
# must count each row as often as it has labels.

# %%
with torch.no_grad():
    alone = torch.stack(
        [model(**collate([row], tokenizer.pad_token_id), use_cache=False).loss for row in three]
    )
    together = model(**batch, use_cache=False).loss
n_learnt = torch.tensor([sum(label != IGNORE_INDEX for label in row["labels"]) for row in three])
print("learnt tokens of each row:", n_learnt.tolist())
print("loss of each row alone:   ", [f"{loss:.2f}" for loss in alone])
print(f"loss of the batch:         {together:.3f}")
print(f"mean over all tokens:      {(alone * n_learnt).sum() / n_learnt.sum():.3f}")
print(f"mean of the three losses:  {alone.mean():.3f}")

# %% [markdown]
# ## What padding costs
#
# It changes nothing, but it is computed. Mix the 60 commands with the 60 rows of counting and
# take 8 rows at a time, in random order.

# %% tags=["nbval-ignore-output"]
of_padding = predict(
    "Which share of the positions is padding?",
    options=["below 20 %", "20 to 40 %", "above 40 %"],
    mine=...,
)

# %% [markdown]
# Two ways waste less. **Length grouping** puts rows of similar length into a batch. **Packing**
# puts several rows into one, one behind the other, until 256 tokens are full. To waste little,
# `pack` starts with the long rows, so the rows come out in another order: shuffle what it returns.

# %%
# alt: Three drawings of batches as horizontal bars. In random order nearly half is padding, in a light colour, grouped by length a little, packed almost none.
mixed = encode_dataset(commands.to_list() + numbers.to_list(), tokenizer)
lengths = [len(ids) for ids in mixed["input_ids"]]
order = random.Random(0).sample(range(120), 120)
in_random_order = [order[i : i + 8] for i in range(0, 120, 8)]
grouped = length_grouped_batches(lengths, 8, seed=0)
packed_rows = pack(mixed, length=256)
packed_lengths = [len(row["input_ids"]) for row in packed_rows]
pairs = [list(range(i, min(i + 2, len(packed_rows)))) for i in range(0, len(packed_rows), 2)]

fig, axes = plt.subplots(1, 3, figsize=(7.4, 3.4))
for ax, title, sizes, batches in (
    (axes[0], "random order", lengths, in_random_order),
    (axes[1], "grouped by length", lengths, grouped),
    (axes[2], "packed", packed_lengths, pairs),
):
    line = 0
    for rows in batches:
        longest = max(sizes[row] for row in rows)
        for row in rows:
            ax.barh(line, sizes[row], height=1, color=BLUE)
            ax.barh(line, longest - sizes[row], height=1, left=sizes[row], color="#F3D9C6")
            line += 1
        line += 1
    share = padding_share(sizes, batches)
    ax.set(title=f"{title}:\n{share:.0%} padding", xlabel="position", xlim=(0, 260), yticks=[])
    ax.invert_yaxis()
axes[0].set_ylabel("rows, 8 or 2 in a batch")
patches = [Patch(color=BLUE), Patch(color="#F3D9C6")]
fig.legend(patches, ["tokens", "padding"], loc="outside lower center", ncols=2, frameon=False)
plt.show()

# %% tags=["nbval-ignore-output"]
share = padding_share(lengths, in_random_order)
of_padding.compare("above 40 %" if share > 0.4 else "20 to 40 %" if share > 0.2 else "below 20 %")

# %% [markdown]
# Nearly half of the work was for nothing. Length grouping saves most of it, and needs no other model
# code. The library's training uses it.
#
# Packing saves the rest, but it is delicate: the tokens of an example must not see the example
# before it. And **prompts see absolute positions** (lesson 03), so the positions must start at 0
# again with each example. Who sees whom can be measured: exchange one token and look where the
# logits change. Here it is for three short texts in one row, in the Llama with its gates a little
# open.

# %%
torch.manual_seed(0)
edu.add_adaption_prompts(model)
for prompts in adapter_prompts(model, "default").values():
    nn.init.constant_(prompts.gate, 0.003)

texts = ["The lights are on", "Open the blinds now", "Count to three"]
token_ids = [tokenizer(text).input_ids for text in texts]
row = pack([{"input_ids": ids, "labels": ids} for ids in token_ids], length=32)
packed = collate_packed(row, tokenizer.pad_token_id)
print("positions:", packed["position_ids"][0].tolist())

# %%
# alt: Two maps of who changes whom: a row for each token that looks, a column for each that is exchanged. As packed: three separate triangles. With a mask of ones: one large triangle.


def who_sees_whom(**inputs: Tensor | bool) -> Float[Tensor, "s t"]:
    """1 where the logits at position s change if the token at position t is exchanged."""
    ids = inputs.pop("input_ids")
    changed = repeat(ids, "1 s -> t s", t=ids.shape[1]).clone()
    changed.diagonal()[:] = tokenizer("!").input_ids[0]
    every = torch.cat([ids, changed])
    many = {
        name: repeat(x, "1 s -> b s", b=len(every)) if isinstance(x, Tensor) else x
        for name, x in inputs.items()
        if name != "labels"
    }
    with torch.no_grad():
        logits = model(input_ids=every, **many).logits
    change = (logits[1:] - logits[:1]).abs().amax(dim=-1)
    return rearrange((change > 0.01).float(), "t s -> s t")


as_packed = who_sees_whom(**packed)
with_mask = who_sees_whom(**packed, attention_mask=torch.ones_like(packed["input_ids"]))
tokens = [tokenizer.decode(token).strip() for token in packed["input_ids"][0]]
fig, (left, right) = plt.subplots(1, 2, figsize=(7, 3.8))
for ax, seen, title in (
    (left, as_packed, "as packed"),
    (right, with_mask, "with a mask of ones"),
):
    heatmap(ax, seen, row_labels=tokens, column_labels=tokens, title=title, vmin=0, vmax=1)
    ax.set_xlabel("t, the token that is exchanged")
left.set_ylabel("s, the token that looks")
plt.show()

# %% [markdown]
# Yellow means: it changed. On the left are three triangles: three causal masks. transformers made
# them by itself, since the positions restart. On the right, somebody passed an attention mask of
# ones, as one does everywhere else. Then transformers trusts that mask, and the examples read each
# other. **There is no warning.** A cache does the same, so the batch says `use_cache=False`.
#
# What does that do to the loss? Here are two commands and two rows of counting: padded, packed, and
# packed with a mask of ones.

# %% tags=["nbval-ignore-output"]
of_mask = predict(
    "Padded rows have a loss of about 1.06. Packed with a mask of ones they have",
    options=["the same", "more", "less"],
    mine=...,
)

# %%
four = mixed.select([0, 1, 67, 69])
padded = collate(four.to_list(), tokenizer.pad_token_id)
packed = collate_packed(pack(four, length=300), tokenizer.pad_token_id)
ones = torch.ones_like(packed["input_ids"])
print("padded", tuple(padded["input_ids"].shape), " packed", tuple(packed["input_ids"].shape))
with torch.no_grad():
    losses = {
        "padded": model(**padded, use_cache=False).loss,
        "packed": model(**packed).loss,
        "packed, with a mask of ones": model(**packed, attention_mask=ones).loss,
    }
for name, loss in losses.items():
    print(f"{name:28} {loss:.3f}")

# %% tags=["nbval-ignore-output"]
change = losses["packed, with a mask of ones"] - losses["padded"]
of_mask.compare("the same" if abs(change) < 0.01 else "more" if change > 0 else "less")

# %% [markdown]
# Padded and packed batches teach the same. The third one teaches something else: to answer after
# reading what stands before it: up to three strangers' questions with their answers.
#
# ## Right or wrong
#
# The loss says how surprised the model was. What a user wants to know is: was the answer right? So
# let the model write a whole answer and compare. How? Here are some answers to one command. `like`
# is a friendly measure from Python's library: the share of equal letters.

# %%
expected = '{"room": "upstairs office", "device": "lights", "brightness": 80}'
answers = {
    "right": expected,
    "a line break at the end": expected + "\n",
    "8 %, not 80 %": expected.replace("80", "8"),
    "another room": expected.replace("upstairs", "downstairs"),
    "it goes on talking": expected + " Anything else?",
    "no answer": "",
}
for name, answer in answers.items():
    like = difflib.SequenceMatcher(None, answer, expected, autojunk=False).ratio()
    print(f"{name:24} like {like:.2f}")

# %% [markdown]
# A light at 8 % instead of 80 % gets 99 of 100 points. The program behind it would turn the light
# nearly off. For such a task an answer is right or wrong. Only spaces and line breaks at its ends
# do no harm.

# %% [markdown] tags=["card"]
# ### Exercise 7.3 · Exact match
#
# *easy ●○○ · 5 minutes*
#
# Return the share of answers that equal the expected text, a number from 0 to 1. Ignore spaces and
# line breaks at both ends, of both texts. Everything else counts, capital letters, too.
#
# <details><summary>Hint 1: direction</summary>
#
# Go through both lists together, count the equal pairs, and divide.
#
# </details>
# <details><summary>Hint 2: axes</summary>
#
# `zip(answers, expected, strict=True)` gives the pairs. `text.strip()` takes spaces and line
# breaks away at both ends. Python counts `True` as 1.
#
# </details>
# <details><summary>Hint 3: a line with blanks</summary>
#
# `sum(a._____() == e._____() for a, e in zip(answers, expected, strict=True)) / len(_____)`
#
# </details>


# %% tags=["exercise"] library="llama_adapter_edu.data.evaluate"
def exact_match(answers: Sequence[str], expected: Sequence[str]) -> float:
    """Share of answers (0 to 1) that equal the expected text, spaces at the ends aside."""
    if not answers or len(answers) != len(expected):
        raise ValueError(f"{len(answers)} answers to compare with {len(expected)} expected texts.")
    ### BEGIN SOLUTION
    return sum(a.strip() == e.strip() for a, e in zip(answers, expected, strict=True)) / len(
        answers
    )
    ### END SOLUTION


# %% tags=["check"]
@check("7.3", "exact_match")
def _():
    pairs = {
        "on": ("".join("on"), True),  # equal, and another object
        "on\n": ("on", True),
        " 80": ("  80 ", True),
        "8": ("80", False),
        "80 %": ("80", False),
        "8 0": ("80", False),
        "8  0": ("8 0", False),
        "80.": ("80", False),
        '"80"': ("80", False),
        "Attic": ("attic", False),
        "": ("off", False),
    }
    try:
        single = {answer: exact_match([answer], [e]) for answer, (e, _) in pairs.items()}
    except json.JSONDecodeError:
        raise AssertionError("answers are texts, and need not be JSON: compare the texts") from None
    assert single["on"] in (1, True), (
        f"'on' for 'on' is one right answer of one: 1, compared with ==; got {single['on']!r}"
    )
    assert single["on\n"] == 1 and single[" 80"] == 1, (
        "spaces and line breaks at the ends count as wrong: use strip, on both texts"
    )
    assert single["80 %"] == 0, "'80 %' is not '80': the answer goes on talking, that is wrong"
    assert single["8"] == 0 and single[""] == 0, "a part of the expected text is not all of it"
    assert single["Attic"] == 0, "'Attic' is not 'attic': capital letters count"
    assert single["8 0"] == 0, "'8 0' is not '80': only spaces at the ends do no harm"
    assert single["8  0"] == 0, "two spaces in the middle are not one: only those at the ends go"
    said = "is not '80': only spaces and line breaks are taken off the ends"
    for marked in ("80.", '"80"'):
        assert single[marked] == 0, f"{marked!r} {said}"

    share = exact_match(list(pairs), [e for e, _ in pairs.values()])
    mistakes = {
        "this is the number of right answers; divide by how many there are": 3.0,
        "return a share from 0 to 1, not percent": 300 / 11,
        "look at all pairs before you return: this is the first one alone": 1 / 11,
        "divide by the number of answers, equal ones count each": 3 / 7,
        "each answer belongs to the expected text at its own place": 4 / 11,
        "this only says whether all are right; return the share": 0.0,
        "this only says whether any is right; return the share": 1.0,
        "this is the share of wrong answers": 8 / 11,
    }
    assert_close(share, 3 / 11, mistakes=mistakes)
    assert_close(exact_match(["a", "b", "c"], ["a", "b", "x"]), 2 / 3, what="2 of 3 right answers")
    swapped = exact_match(["on", "off"], ["off", "on"])
    assert swapped == 0, "each answer belongs to the expected text at its own place"
    twice = exact_match(["on", "on", "on"], ["on", "off", "off"])
    assert_close(twice, 1 / 3, what="the same answer three times, right once")


# %% [raw] tags=["wrong"] says="use strip, on both texts"
"""
def exact_match(answers, expected):
    return sum(a == e for a, e in zip(answers, expected)) / len(answers)
"""

# %% [raw] tags=["wrong"] says="the answer goes on talking"
"""
def exact_match(answers, expected):
    return sum(a.strip().startswith(e.strip()) for a, e in zip(answers, expected)) / len(answers)
"""

# %% [raw] tags=["wrong"] says="a part of the expected text"
"""
def exact_match(answers, expected):
    return sum(a.strip() in e.strip() for a, e in zip(answers, expected)) / len(answers)
"""

# %% [raw] tags=["wrong"] says="capital letters count"
"""
def exact_match(answers, expected):
    pairs = zip(answers, expected)
    return sum(a.strip().lower() == e.strip().lower() for a, e in pairs) / len(answers)
"""

# %% [raw] tags=["wrong"] says="divide by how many there are"
"""
def exact_match(answers, expected):
    return sum(a.strip() == e.strip() for a, e in zip(answers, expected))
"""

# %% [raw] tags=["wrong"] says="at its own place"
"""
def exact_match(answers, expected):
    right = {e.strip() for e in expected}
    return sum(a.strip() in right for a in answers) / len(answers)
"""

# %% [raw] tags=["right"]
"""
def exact_match(answers, expected):
    right = 0
    for answer, text in zip(answers, expected):
        if answer.strip() == text.strip():
            right += 1
    return right / len(expected)
"""

# %% [raw] tags=["right"]
"""
def exact_match(answers, expected):
    stripped = [[text.strip() for text in texts] for texts in (answers, expected)]
    return torch.tensor([a == e for a, e in zip(*stripped)]).double().mean().item()
"""

# %%
for name, answer in answers.items():
    print(f"{name:24} exact match {exact_match([answer], [expected]):.0f}")

# %% [markdown]
# It is strict, and it fits answers of which only one form is right. For free text you need another
# measure: there are many good ways to say hello.
#
# ## A test that does not leak
#
# A right answer should mean that the model *understood* the command. It does not, if it has seen
# nearly the same one in training. So which rows do you keep for the test?
#
# A row has a **room** and a **phrasing**. Take the value and the device out as well, and the
# phrasing is a pattern. Our training rooms and phrasings make a table, and each command is one of
# its cells.


# %%
def room_and_phrasing(row: dict[str, str]) -> tuple[str, str]:
    """The room of a command, and the command with gaps for room, device and value."""
    room, device, value = json.loads(row["output"]).values()
    sentence = row["instruction"].lower()
    sentence = sentence.replace(room, "ROOM").replace(device, "DEVICE")
    return room, re.sub(rf"\b{value}\b(%| degrees)?", "VALUE", sentence)


train_rows = home_commands("train", 4000).to_list()
for row in train_rows[:3]:
    print(row["instruction"], "\n   ->", " | ".join(room_and_phrasing(row)))
rooms, phrasings = zip(*map(room_and_phrasing, train_rows), strict=True)
print(f"\n{len(set(rooms))} rooms and {len(set(phrasings))} phrasings in {len(rooms)} rows")

# %% [markdown]
# If you draw test rows at random, each of them has neighbours in the training set: the same room
# in another sentence. So do not draw rows. Draw *rooms*, and keep all rows of these rooms for the
# test. This is a **group split**.

# %% [markdown] tags=["card"]
# ### Exercise 7.4 · Split by group
#
# *medium ●●○ · 9 minutes*
#
# `groups` holds the group of each row, as its room. Hold out `test_share` of the groups, rounded.
# Return the row numbers for training, then those for the test. The same seed holds out the same
# groups, whatever the order of the rows. Another seed holds out others.
#
# <details><summary>Hint 1: direction</summary>
#
# Find the different groups, shuffle them, and hold out the first ones. Then go through the rows
# and ask each for its group.
#
# </details>
# <details><summary>Hint 2: axes</summary>
#
# There are two kinds of numbers: groups and rows. `len(set(groups))` is the number of groups. A
# set has no order, so sort it before you shuffle with `random.Random(seed).shuffle(...)`.
#
# </details>
# <details><summary>Hint 3: a line with blanks</summary>
#
# `names = sorted(set(_____))`, shuffle, `held_out = set(names[: round(_____ * len(names))])`, then
# `test = [row for row, group in enumerate(groups) if _____ in held_out]`
#
# </details>


# %% tags=["exercise"] assemble=true
def group_split(
    groups: Sequence[str], test_share: float, seed: int = 0
) -> tuple[list[int], list[int]]:
    """Row numbers for training and for the test, in order; no group is on both sides.

    `groups` names the group of each row. `test_share` (0 to 1) of the groups go to the test.
    """
    ### BEGIN SOLUTION
    # ~ names = ...
    names = sorted(set(groups))
    random.Random(seed).shuffle(names)
    held_out = set(names[: round(test_share * len(names))])
    train = [row for row, group in enumerate(groups) if group not in held_out]
    test = [row for row, group in enumerate(groups) if group in held_out]
    return train, test
    ### END SOLUTION


# %% tags=["check"]
@check("7.4", "group_split", n=[10, 9], test_share=[0.3, 0.4], n_test=[3, 4])
def _(n, test_share, n_test):
    # "a" has 1 row, "b" has 2, and so on; mixed
    some_groups = ["abcdefghij"[i] for i in range(n) for _ in range(i + 1)]
    random.Random(1).shuffle(some_groups)
    n_rows = len(some_groups)
    sides = unpacked(group_split(some_groups, test_share), "training", "test")
    no_set = not any(isinstance(side, (set, frozenset)) for side in sides)
    assert no_set, "a set has no order: return lists of row numbers"
    train, test = map(list, sides)
    assert all(hasattr(row, "__index__") for row in train + test), (
        "return row numbers, not the groups: 0 is the first row"
    )
    both = {some_groups[row] for row in train} & {some_groups[row] for row in test}
    assert not both, f"{len(both)} groups are on both sides: hold out groups, not rows"
    assert sorted(train + test) == list(range(n_rows)), (
        f"each of the {n_rows} rows goes to one of the sides"
    )
    in_order = train == sorted(train) and test == sorted(test)
    assert in_order, "the row numbers of a side should stand in order"
    held_out = {some_groups[row] for row in test}
    assert len(held_out) != n - n_test, "training and test look swapped: training comes first"
    for seed in range(5):
        count = len({some_groups[row] for row in group_split(some_groups, test_share, seed)[1]})
        assert count == n_test, (
            f"{test_share} of {n} groups are {n_test} for the test, got {count} with seed {seed}"
        )
    nobody, everybody = (len(group_split(some_groups, share)[1]) for share in (0.0, 1.0))
    assert nobody == 0, f"test_share=0 should hold out nothing, got {nobody} rows"
    assert everybody == n_rows, f"test_share=1 should hold out all {n_rows} rows, got {everybody}"

    def held_out_from(rows, seed):
        return frozenset(rows[row] for row in group_split(rows, test_share, seed)[1])

    class Group(str):
        """A text whose place in a set is decided by who came first, as it may be for any text."""

        def __hash__(self):
            return 0

    assert held_out_from(some_groups, 0) == held_out, "the same seed should give the same split"
    for seed in range(5):
        rows = list(map(Group, some_groups))
        assert held_out_from(rows[::-1], seed) == held_out_from(rows, seed), (
            "the split depends on the order of the rows: sort the groups before you shuffle them"
        )
    several = {held_out_from(some_groups, seed) for seed in range(5)}
    assert len(several) > 1, "five seeds hold out the same groups: shuffle them with the seed"
    alike = ["attic", "old attic", "cellar", "wine cellar"]
    for seed in range(5):
        sizes = [len(side) for side in group_split(alike, 0.5, seed)]
        same = held_out_from(alike, seed) == held_out_from(alike[::-1], seed)
        said = "the split depends on the order of the rows: sort the groups by name"
        assert same, said
        assert sizes == [2, 2], (
            "'attic' is a part of 'old attic', and another group: compare whole names"
        )


# %% [raw] tags=["wrong"] says="hold out groups, not rows"
"""
def group_split(groups, test_share, seed=0):
    rows = list(range(len(groups)))
    random.Random(seed).shuffle(rows)
    n_test = round(test_share * len(rows))
    return sorted(rows[n_test:]), sorted(rows[:n_test])
"""

# %% [raw] tags=["wrong"] says="look swapped"
"""
def group_split(groups, test_share, seed=0):
    names = sorted(set(groups))
    random.Random(seed).shuffle(names)
    held_out = set(names[: round(test_share * len(names))])
    train = [row for row, group in enumerate(groups) if group not in held_out]
    test = [row for row, group in enumerate(groups) if group in held_out]
    return test, train
"""

# %% [raw] tags=["wrong"] says="the same seed should give the same split"
"""
def group_split(groups, test_share, seed=0):
    names = sorted(set(groups))
    random.shuffle(names)
    held_out = set(names[: round(test_share * len(names))])
    train = [row for row, group in enumerate(groups) if group not in held_out]
    test = [row for row, group in enumerate(groups) if group in held_out]
    return train, test
"""

# %% [raw] tags=["wrong"] says="sort the groups before you shuffle"
"""
def group_split(groups, test_share, seed=0):
    names = list(dict.fromkeys(groups))
    random.Random(seed).shuffle(names)
    held_out = set(names[: round(test_share * len(names))])
    train = [row for row, group in enumerate(groups) if group not in held_out]
    test = [row for row, group in enumerate(groups) if group in held_out]
    return train, test
"""

# %% [raw] tags=["wrong"] says="five seeds hold out the same groups"
"""
def group_split(groups, test_share, seed=0):
    names = sorted(set(groups))
    held_out = set(names[: round(test_share * len(names))])
    train = [row for row, group in enumerate(groups) if group not in held_out]
    test = [row for row, group in enumerate(groups) if group in held_out]
    return train, test
"""

# %% [raw] tags=["wrong"] says="return row numbers, not the groups"
"""
def group_split(groups, test_share, seed=0):
    names = sorted(set(groups))
    random.Random(seed).shuffle(names)
    n_test = round(test_share * len(names))
    return names[n_test:], names[:n_test]
"""

# %% [raw] tags=["wrong"] says="0.3 of 10 groups are 3"
"""
def group_split(groups, test_share, seed=0):
    names = sorted(set(groups))
    random.Random(seed).shuffle(names)
    held_out = set(names[: round(test_share * len(groups))])
    train = [row for row, group in enumerate(groups) if group not in held_out]
    test = [row for row, group in enumerate(groups) if group in held_out]
    return train, test
"""

# %% [raw] tags=["wrong"] says="0.3 of 10 groups are 3"
"""
def group_split(groups, test_share, seed=0):
    names = sorted(set(groups))
    random.Random(seed).shuffle(names)
    train, test = [], []
    for name in names:
        rows = [row for row, group in enumerate(groups) if group == name]
        (test if len(test) + len(rows) <= test_share * len(groups) else train).extend(rows)
    return sorted(train), sorted(test)
"""

# %% [raw] tags=["right"]
"""
def group_split(groups, test_share, seed=0):
    names = sorted(set(groups))
    held_out = random.Random(seed).sample(names, round(test_share * len(names)))
    sides = [], []
    for row, group in enumerate(groups):
        sides[group in held_out].append(row)
    return sides
"""

# %% [raw] tags=["right"]
"""
def group_split(groups, test_share, seed=0):
    names = sorted(set(groups))
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
    rank = {names[number]: place for place, number in enumerate(order)}
    n_test = round(test_share * len(names))
    rows = range(len(groups))
    train = list(filter(lambda row: rank[groups[row]] >= n_test, rows))
    return train, list(filter(lambda row: rank[groups[row]] < n_test, rows))
"""

# %% [markdown]
# Here are three splits of a small table, all with your function. For the first, each cell is a
# group of its own. For the third, rooms *and* phrasings are held out; a cell with a held-out room or
# a held-out phrasing, but not both, is in neither set.

# %%
# alt: Three tables of 12 rooms by 10 phrasings. Random: test cells are scattered. New rooms: three full rows are test. New rooms and phrasings: only where three rows and two columns cross is test; the rest of these is left out.
cells = [(room, phrasing) for room in range(12) for phrasing in range(10)]
_, random_cells = group_split([f"{room} {phrasing}" for room, phrasing in cells], 0.25)
_, room_cells = group_split([f"{room:02}" for room, _ in cells], 0.25)
_, phrasing_cells = group_split([str(phrasing) for _, phrasing in cells], 0.25)
both = set(room_cells) & set(phrasing_cells)
one = set(room_cells) ^ set(phrasing_cells)
fig, axes = plt.subplots(1, 3, figsize=(7.2, 3.2))
palette = ListedColormap(["#9CCBE8", "#FFFFFF", ORANGE])
for ax, title, test, out in (
    (axes[0], "random", random_cells, ()),
    (axes[1], "new rooms", room_cells, ()),
    (axes[2], "new rooms,\nnew phrasings", both, one),
):
    kind = torch.tensor([2 if i in test else 1 if i in out else 0 for i in range(120)])
    table = rearrange(kind, "(room phrasing) -> room phrasing", room=12)
    heatmap(ax, table, columns="phrasing", title=title, cmap=palette, vmin=0, vmax=2)
    for room, phrasing in (table == 2).nonzero().tolist():
        ax.text(phrasing, room, "T", ha="center", va="center", fontsize=7, color="white")
    ax.set(xticks=[], yticks=[])
axes[0].set_ylabel("room")
patches = [Patch(facecolor=palette(i), edgecolor="#999999") for i in range(3)]
names = ["training", "in neither", "test (T)"]
fig.legend(patches, names, loc="outside lower center", ncols=3, frameon=False)
plt.show()

# %% [markdown]
# ## The leak, measured
#
# Now the real rows: 4,000 commands, split at random and by room. The third test is the course's own:
# 800 more commands, whose rooms and phrasings are never in training. First, how much of the test was
# seen in training?


# %%
def seen_share(test: Sequence[str], train: Sequence[str]) -> float:
    """Share of the test's entries that also occur in training."""
    known = set(train)
    return sum(entry in known for entry in test) / len(test)


def rows_of(split: tuple[list[int], list[int]]) -> list[list[dict[str, str]]]:
    return [[train_rows[number] for number in side] for side in split]


splits = {
    "random": rows_of(group_split([row["instruction"] for row in train_rows], 0.2)),
    "new rooms": rows_of(group_split(rooms, 0.2)),
    "new rooms and phrasings": [train_rows, home_commands("test", 800).to_list()],
}
print("seen in training:          rooms   phrasings")
for name, (train, test) in splits.items():
    columns = [list(zip(*map(room_and_phrasing, side), strict=True)) for side in (test, train)]
    shares = [seen_share(*pair) for pair in zip(*columns, strict=True)]
    print(f"{name:24} {shares[0]:7.0%} {shares[1]:11.0%}")

# %% [markdown]
# And what is that worth? Let two programs take the test. Neither understands anything. They have
# to find the room; we give them the rest of the answer.
#
# * **The list** knows the rooms of the training rows by heart. It looks which of them is in the
#   command.
# * **The forms** know the phrasings of the training rows by heart. A form is a sentence with gaps,
#   and what stands in the gap for the room must be the room.

# %% tags=["nbval-ignore-output"]
of_leak = predict(
    "New rooms only: no test room is in the training. Who still gets nearly all of them right?",
    options=["the list", "the forms", "both", "neither"],
    mine=...,
)

# %%
GAPS = {"ROOM": "(?P<room>.+)", "DEVICE": r"\w+", "VALUE": r"(?:on|off|\d+%|\d+ degrees)"}


def the_list(train: list[dict[str, str]], commands: list[str]) -> list[str]:
    """The longest training room that stands in each command."""
    known = sorted({room_and_phrasing(row)[0] for row in train}, key=len, reverse=True)
    return [next((room for room in known if room in text.lower()), "") for text in commands]


def the_forms(train: list[dict[str, str]], commands: list[str]) -> list[str]:
    """What stands in the gap for the room, in the longest training phrasing that fits."""
    known = sorted({room_and_phrasing(row)[1] for row in train}, key=len, reverse=True)
    forms = []
    for phrasing in known:
        pattern = re.escape(phrasing)
        for gap, anything in GAPS.items():
            pattern = pattern.replace(gap, anything)
        forms.append(re.compile(pattern))
    matches = [[form.fullmatch(text.lower()) for form in forms] for text in commands]
    return [next((match["room"] for match in row if match), "") for row in matches]


scores = {}
for name, (train, test) in splits.items():
    commands_of_test = [row["instruction"] for row in test]
    expected_rooms = [room_and_phrasing(row)[0] for row in test]
    scores[name] = [
        exact_match(program(train, commands_of_test), expected_rooms)
        for program in (the_list, the_forms)
    ]
    print(f"{name:24} the list {scores[name][0]:4.0%}   the forms {scores[name][1]:4.0%}")

# %% tags=["nbval-ignore-output"]
by_list, by_forms = (score > 0.9 for score in scores["new rooms"])
of_leak.compare(
    "both"
    if by_list and by_forms
    else "the list"
    if by_list
    else "the forms"
    if by_forms
    else "neither"
)

# %%
# alt: Bars of exact match for three splits. Random: list and forms both near 100 %. New rooms: the list 0 %, the forms 100 %. New rooms and phrasings: both 0 %.
fig, ax = plt.subplots(figsize=(7, 2.8))
places = torch.arange(3)
for shift, number, name, colour in ((-0.2, 0, "the list", BLUE), (0.2, 1, "the forms", ORANGE)):
    heights = [100 * score[number] for score in scores.values()]
    style = {"color": colour, "hatch": "//" * number, "label": name}
    bars = ax.bar(places + shift, heights, width=0.38, **style)
    ax.bar_label(bars, fmt="{:.0f} %", fontsize=9)
ax.set(ylabel="exact match", ylim=(0, 118), yticks=[0, 50, 100])
ax.set_xticks(places, scores)
ax.legend(frameon=False, loc="upper right")
plt.show()

# %% [markdown]
# With a random split, a list of rooms gets almost full marks. Hold out the rooms, and the list
# fails, but the forms still get everything. Only the third test asks for what we want: a room
# never heard of, in a sentence never heard. A Llama could pass the first two tests like these
# programs. So this course only ever reports the third.
#
# In your own data, ask the same: what could be learnt by heart? Patients, customers, authors,
# sites, dates. Split by that. scikit-learn has the split as `GroupShuffleSplit`.
#
# ## What you built
#
# * `encode_row`: prompt, answer, closing token, and labels that say what is learnt,
# * `collate`: a batch with padding that nobody sees and nobody learns,
# * `exact_match`: right or wrong, to the letter,
# * `group_split`: a test set that nobody can know by heart.
#
# **Next, lesson 08:** with honest data and an honest metric you can ask what matters: how many
# layers, which start, how many prompts, which learning rate.
#
# ## To think about
#
# 1. The closing token is learnt in each row. What would a model do that was trained without it?
#
# <details><summary>Answer</summary>
#
# It would answer, and then go on: another answer, a new command, anything, up to the limit of
# tokens. Its exact match would be near 0, although the right JSON stands at the beginning.
#
# </details>
#
# 2. Two batches have losses of 1.0 and 3.0. The first has 300 learnt tokens, the second 100. What
#    is the loss over both?
#
# <details><summary>Answer</summary>
#
# 1.5: (300 · 1.0 + 100 · 3.0) / 400. The mean of the two losses would be 2.0. Whoever splits a
# batch into smaller ones has to count the tokens, as lesson 11 does.
#
# </details>
#
# 3. Room *words*: the held-out rooms of the second split are made of words that all occur in other
#    training rooms, as "old kitchen" from "old attic" and "big kitchen". Is that a leak, too?
#
# <details><summary>Answer</summary>
#
# Yes, a smaller one. A program that knows the words by heart could put them together again.
# The course's test rooms share no word with the training rooms, so they must be copied from the
# command.
#
# </details>
