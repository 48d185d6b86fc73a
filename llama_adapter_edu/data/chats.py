"""Chats -> pieces of text, each learnt or only read -> token ids.

    <|im_start|>user Hi<|im_end|> <|im_start|>assistant │ Hello<|im_end|> │ <|im_start|>user ...
    read                                                │ learnt          │ read

The tokenizer's chat template writes the text, as it does when the model is used. So that each
turn is found again in it, contents carry marks: characters that Unicode reserves for programs. A
turn of the assistant begins where a model would begin to write, and ends with the token that
closes it in the template. What is learnt there is what `generate` then does.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from llama_adapter_edu.data.rows import UnusableRowError

Messages = Sequence[Mapping[str, str]]
Pieces = list[tuple[str, bool]]  # texts, and whether each is learnt

# For a tokenizer without a template: Stanford Alpaca's headings (Taori et al., 2023), turn by turn.
PLAIN = """\
{%- for m in messages -%}
{%- if m.role == 'user' %}{{ '### Instruction:\\n' + m.content + '\\n\\n' }}
{%- elif m.role == 'assistant' %}{{ '### Response:\\n' + m.content + (eos_token or '') + '\\n\\n' }}
{%- else %}{{ m.content + '\\n\\n' }}{% endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '### Response:\\n' }}{% endif -%}
"""

CUT, BEGIN, END = "\ufdd0", "\ufdd1", "\ufdd2{}\ufdd3"
END_MARK = re.compile("\ufdd2\\d+\ufdd3")
MARKS = re.compile(f"{BEGIN}|{END_MARK.pattern}")


def as_messages(tokenizer: PreTrainedTokenizerBase, row: Mapping[str, Any]) -> list[dict[str, str]]:
    """The turns of a row of `checked_row`; without `output`, only those of the user."""
    if "messages" in row:
        return row["messages"]
    heading = "" if tokenizer.chat_template else "### Input:\n"
    context = f"\n\n{heading}{row['input']}" if row.get("input") else ""
    turns = [{"role": "user", "content": row["instruction"] + context}]
    if "output" in row:
        turns.append({"role": "assistant", "content": row["output"]})
    return turns


def prompt_pieces(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> list[str]:
    """What a model is given to write the next turn of the assistant, as that turn is learnt."""
    answered = [*messages, {"role": "assistant", "content": "x"}]
    return [piece for piece, _ in _pieces(tokenizer, answered)[0][:-1]]


def prompt_ids(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> list[int]:
    """The token ids of `prompt_pieces`, in one list."""
    parts = token_ids(tokenizer, prompt_pieces(tokenizer, messages))
    return [token for part in parts for token in part]


def learnt_pieces(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> Pieces:
    """The text of a chat in pieces, and whether each is learnt; for `token_ids`.

    A turn is closed by the special token that follows its content, the last one by the tokenizer's
    eos token if there is none. What stands behind the last turn of the assistant is left out.

    Raises:
        UnusableRowError: no turn of the assistant, an empty one, or one that cannot be found in
            what the chat template makes of it.
        ValueError: the template closes no turn, and the tokenizer has no eos token.
    """
    pieces, closed = _pieces(tokenizer, messages)
    if not pieces:
        raise UnusableRowError("without a turn of the assistant", "No turn of the assistant.")
    if not closed:
        if tokenizer.eos_token is None:
            raise ValueError(
                "The tokenizer has no eos token, so a model could not learn where an answer ends. "
                "Set tokenizer.eos_token first."
            )
        pieces[-1] = (pieces[-1][0] + tokenizer.eos_token, True)
    return pieces


def _pieces(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> tuple[Pieces, bool]:
    """`learnt_pieces`, and whether the template closes the last one."""
    marked = [_marked(tokenizer, number, message) for number, message in enumerate(messages)]
    text = _render(tokenizer, marked)
    eos = re.escape(tokenizer.eos_token or "")
    closing = re.compile(rf"\s*(?:{_specials(tokenizer)})(?:{eos})?")
    pieces, read, closed = [], 0, None
    for number, message in enumerate(messages):
        if message["role"] == "assistant":
            begin, end = _turn(tokenizer, marked, number, text)
            closed = closing.match(text, end)
            end = closed.end() if closed else end
            pieces += [(text[read:begin], False), (text[begin:end], True)]
            read = end
    return [(MARKS.sub("", piece), learnt) for piece, learnt in pieces], bool(closed)


def _turn(
    tokenizer: PreTrainedTokenizerBase, marked: Messages, number: int, text: str
) -> tuple[int, int]:
    """Where in the text of a chat the assistant's turn begins, and where its content ends."""
    mark = END.format(number)
    end = text.find(mark)
    before = max((found.end() for found in END_MARK.finditer(text, 0, end)), default=0)
    begin = text.find(BEGIN, before, end)
    if number:  # it begins where a model would begin to write
        prompt = _render(tokenizer, marked[:number], prompt=True)
        given = END_MARK.split(prompt)[-1]
        begin = before + len(given) if text.startswith(given, before) else begin
    if text.count(mark) != 1 or begin < 0:
        message = f"The tokenizer's chat template leaves out or rewrites turn {number + 1}."
        raise UnusableRowError("with a turn that the chat template rewrites", message)
    return begin, end + len(mark)


def token_ids(tokenizer: PreTrainedTokenizerBase, pieces: Sequence[str]) -> list[list[int]]:
    """The token ids of each piece of a text: no token spans a border.

    Apart from that they are the ids of the whole text. Only the template's special tokens become
    tokens of that kind; those that stand in the contents are text.
    """
    before, result = "", []
    for piece in pieces:
        ids: list[int] = []
        for part in piece.split(CUT):
            ids += _continued(tokenizer, before, part)
            before = part or before
        result.append(ids)
    if not tokenizer.chat_template:  # a template writes the first token itself
        first = tokenizer("")["input_ids"][:1]
        if first == [tokenizer.bos_token_id]:
            result[0] = first + result[0]
    return result


def _continued(tokenizer: PreTrainedTokenizerBase, before: str, text: str) -> list[int]:
    """The ids of `text` where it follows `before`: alone, it may be given a space in front."""

    def ids(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False)["input_ids"] if text else []

    for start in (before, "\n"):
        alone, whole = ids(start), ids(start + text)
        if whole[: len(alone)] == alone:
            return whole[len(alone) :]
    return ids(text)


def _render(tokenizer: PreTrainedTokenizerBase, messages: Messages, *, prompt: bool = False) -> str:
    try:
        return tokenizer.apply_chat_template(
            list(messages),
            chat_template=None if tokenizer.chat_template else PLAIN,
            add_generation_prompt=prompt,
            tokenize=False,
        )
    except TemplateError as error:
        message = f"The tokenizer's chat template refuses this chat: {error}"
        raise UnusableRowError("that the chat template refuses", message) from error


def _marked(
    tokenizer: PreTrainedTokenizerBase, number: int, message: Mapping[str, str]
) -> dict[str, str]:
    """The message with marks around its content, inside of its spaces: templates may strip them."""
    text = _cut_specials(tokenizer, message["content"])
    body, begin = text.strip(), ""
    if message["role"] == "assistant":
        if not body:
            raise UnusableRowError("with an empty answer", "An answer is empty.")
        begin = BEGIN
    left = text[: len(text) - len(text.lstrip())]
    right = text[len(left) + len(body) :]
    return {**message, "content": left + begin + body + END.format(number) + right}


def _specials(tokenizer: PreTrainedTokenizerBase) -> str:
    """A pattern of all special tokens, the longest first."""
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    texts = sorted({*tokenizer.all_special_tokens, *added}, key=len, reverse=True)
    return "|".join(map(re.escape, texts)) or "(?!)"


def _cut_specials(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """The text with a cut behind the first character of each special token that it spells."""
    return re.sub(rf"(?s)(?={_specials(tokenizer)}).", rf"\g<0>{CUT}", text)
