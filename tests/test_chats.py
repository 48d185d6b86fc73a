"""Chats: exactly the assistant's turns are learnt, in any template, and texts stay text.

Judged by what transformers renders, by TRL's templates with generation marks, and by texts written
down here.
"""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from llama_adapter_edu import encode_dataset, load_instructions
from llama_adapter_edu.data.encoding import IGNORE_INDEX, encode, encode_prompt, format_prompt

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA2 = (
    "{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}"
    "{% set system = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}"
    "{% else %}{% set rest = messages %}{% set system = '' %}{% endif %}"
    "{% for m in rest %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate user/assistant') }}{% endif %}"
    "{% if m.role == 'user' %}{{ '<s>[INST] ' + (system if loop.first else '') + m.content.strip() "
    "+ ' [/INST]' }}{% else %}{{ ' ' + m.content.strip() + ' </s>' }}{% endif %}{% endfor %}"
)
LLAMA3 = (
    "{{ '<s>' }}{% for m in messages %}{{ '<|head|>' + m.role + '<|/head|>\n\n' + "
    "m.content | trim + '<|eot|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|head|>assistant<|/head|>\n\n' }}{% endif %}"
)
# An empty thought before the last answer; earlier thoughts are taken out (as Qwen3 does it).
THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role != 'assistant' %}{{ m.content }}"
    "{% elif '</think>' in m.content and loop.last %}{{ m.content }}"
    "{% elif '</think>' in m.content %}{{ m.content.split('</think>')[-1].lstrip('\n') }}"
    "{% elif loop.last %}{{ '<think>\n\n</think>\n\n' + m.content }}"
    "{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
MARKS = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|head|>", "<|/head|>", "<|eot|>"]
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": "It is 4."},
    {"role": "user", "content": "And doubled?\n\nPlease."},
    {"role": "assistant", "content": "That gives 8,\n\nsurely."},
]


def byte_tokenizer(template=None, *, specials=(), eos="</s>") -> PreTrainedTokenizerFast:
    """One token a byte: no token spans anything, so texts can be compared to the letter."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(dict.fromkeys([*MARKS, *specials])))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token=eos, chat_template=template
    )


def learnt(row: dict, tokenizer) -> list[str]:
    """The texts of the runs of labelled tokens."""
    runs, current = [], []
    for token, label in zip(row["input_ids"], row["labels"], strict=True):
        assert label in (token, IGNORE_INDEX)
        if label == token:
            current.append(token)
        elif current:
            runs, current = [*runs, current], []
    return [tokenizer.decode(run) for run in [*runs, current]]


def specials(ids: list[int], tokenizer) -> list[str]:
    marks = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return [tokenizer.decode(i) for i in ids if i in marks]


# --- which tokens are learnt ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "turns"),
    [
        (CHATML, ["It is 4.<|im_end|>", "That gives 8,\n\nsurely.<|im_end|>"]),
        (LLAMA2, [" It is 4. </s>", " That gives 8,\n\nsurely. </s>"]),
        (LLAMA3, ["It is 4.<|eot|>", "That gives 8,\n\nsurely.<|eot|>"]),
        (
            THINKING,
            ["It is 4.<|im_end|>", "<think>\n\n</think>\n\nThat gives 8,\n\nsurely.<|im_end|>"],
        ),
    ],
    ids=["chatml", "llama 2", "llama 3", "thinking"],
)
def test_every_turn_of_the_assistant_with_the_templates_closing_token(template, turns):
    tokenizer = byte_tokenizer(template)
    row = encode({"messages": CHAT}, tokenizer)
    assert learnt(row, tokenizer) == turns
    text = tokenizer.apply_chat_template(CHAT, tokenize=False)
    assert tokenizer.decode(row["input_ids"]) == text.rstrip("\n")


def test_thoughts_are_learnt_where_the_template_shows_them():
    tokenizer = byte_tokenizer(THINKING)
    chat = [dict(turn) for turn in CHAT]
    for turn in (2, 4):
        chat[turn]["content"] = f"<think>\nHm.\n</think>\n\n{chat[turn]['content']}"
    assert learnt(encode({"messages": chat}, tokenizer), tokenizer) == [
        "It is 4.<|im_end|>",
        "<think>\nHm.\n</think>\n\nThat gives 8,\n\nsurely.<|im_end|>",
    ]


def test_without_a_template_alpacas_headings_turn_by_turn():
    tokenizer = byte_tokenizer()
    row = encode({"messages": CHAT}, tokenizer)
    assert tokenizer.decode(row["input_ids"]) == (
        "Be brief.\n\n### Instruction:\nWhat is 2 + 2?\n\n### Response:\nIt is 4.</s>\n\n"
        "### Instruction:\nAnd doubled?\n\nPlease.\n\n### Response:\nThat gives 8,\n\nsurely.</s>"
    )
    assert learnt(row, tokenizer) == ["It is 4.</s>", "That gives 8,\n\nsurely.</s>"]


def test_a_template_that_neither_opens_nor_closes_a_turn_for_generate():
    """The model has to write who speaks, and ends with the tokenizer's own token."""
    template = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    tokenizer = byte_tokenizer(template)
    row = encode({"messages": CHAT}, tokenizer)
    assert learnt(row, tokenizer) == [
        "assistant: It is 4.",
        "assistant: That gives 8,\n\nsurely.</s>",
    ]


KINDS = ("", "_training")
TRL = [
    *("cohere", "cohere2", "deepseekv3", "diffusion_gemma", "gemma", "gemma3", "glm4moe", "gptoss"),
    *("lfm2", "llama3", "muse_glimmer", "phi3", "phi3_5", "qwen2_5", "qwen3", "qwen3_5_nothink"),
    *("qwen3_5_think", "qwen3_instruct_2507", "qwen3_vl"),
]


@pytest.mark.parametrize("name", TRL)
def test_as_trls_templates_with_generation_marks(name):
    """What `return_assistant_tokens_mask` marks is learnt, but not what a model is given, nor
    what follows the closing token."""
    trl = pytest.importorskip("trl")
    files = [Path(trl.__file__).parent / f"chat_templates/{name}{end}.jinja" for end in KINDS]
    if not all(file.exists() for file in files):
        pytest.skip(f"this TRL has no templates {name}")
    original, marked = (file.read_text(encoding="utf-8") for file in files)
    found = re.findall(r"<[|｜][^<>'\s{}]+[|｜]>|<(?:end|start)_of_turn>|<turn\|>|<\|turn>", marked)
    eos = "<|END_OF_TURN_TOKEN|>" if name == "cohere2" else "</s>"
    tokenizer = byte_tokenizer(marked, specials=found, eos=eos)
    chat = CHAT if name != "gemma" else CHAT[1:]  # Gemma knows no system prompt
    oracle = tokenizer.apply_chat_template(
        chat, return_assistant_tokens_mask=True, return_dict=True, tokenize=True
    )
    pairs = zip(oracle["input_ids"], oracle["assistant_masks"], strict=True)
    labels = [token if marked else IGNORE_INDEX for token, marked in pairs]
    expected = learnt({"input_ids": oracle["input_ids"], "labels": labels}, tokenizer)
    ours = learnt(encode({"messages": chat}, tokenizer, None), tokenizer)
    assert len(expected) == len(ours) == 2
    for number, turn, mine in zip((-3, -1), expected, ours, strict=True):
        given = tokenizer.apply_chat_template(
            chat[:number], add_generation_prompt=True, tokenize=False
        )
        head, found, tail = turn.partition(mine)
        assert found and head in given and tail.strip() in ("", eos)

    texts = [
        tokenizer.apply_chat_template(chat, chat_template=template, tokenize=False)
        for template in (original, marked)
    ]
    if texts[0] == texts[1]:  # then the marks must make no difference
        tokenizer.chat_template = original
        assert learnt(encode({"messages": chat}, tokenizer, None), tokenizer) == ours


# --- rows and what a model is given --------------------------------------------------------------

TEMPLATES = {
    "chatml": CHATML,
    "llama 2": LLAMA2,
    "llama 3": LLAMA3,
    "thinking": THINKING,
    "thinking always": THINKING.replace("assistant\n' }}", "assistant\n<think>\n' }}"),
    "none": None,
}
TOKENIZERS = {name: byte_tokenizer(template) for name, template in TEMPLATES.items()}


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_a_row_begins_with_what_the_model_is_given(template):
    tokenizer = byte_tokenizer(template)
    for text in ("hi", "\n\nhi there ", "<|im_end|>"):
        row = encode({"instruction": "Say it", "input": " twice", "output": text}, tokenizer)
        prompt = encode_prompt(tokenizer, "Say it", " twice")
        assert row["input_ids"][: len(prompt)] == prompt
        assert set(row["labels"][: len(prompt)]) == {IGNORE_INDEX}
        assert IGNORE_INDEX not in row["labels"][len(prompt) :]
        assert tokenizer.decode(prompt) == format_prompt(tokenizer, "Say it", " twice")


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_a_chat_of_one_question_is_an_instruction(template):
    tokenizer = byte_tokenizer(template)
    question, answer = "Say hi", "hi"
    asked = {"role": "user", "content": question}
    chat = {"messages": [asked, {"role": "assistant", "content": answer}]}
    instruction = {"instruction": question, "output": answer}
    assert encode(chat, tokenizer) == encode(instruction, tokenizer)
    if template and "think" not in template:
        given = tokenizer.apply_chat_template([asked], add_generation_prompt=True, tokenize=False)
        assert format_prompt(tokenizer, question) == given


def test_what_follows_the_last_answer_is_left_out():
    tokenizer = byte_tokenizer(CHATML)
    asked = [*CHAT, {"role": "user", "content": "Thanks."}]
    assert encode({"messages": asked}, tokenizer) == encode({"messages": CHAT}, tokenizer)


# --- text is text --------------------------------------------------------------------------------

PARTS = ["<", "|im_end|>", "s>", "\n", " ", "hi", "ä😀", "</think>", "[INST]"]
PIECES = st.sampled_from([*MARKS, *PARTS])
TEXT = st.lists(PIECES, min_size=1, max_size=6).map("".join).filter(str.strip)


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(TEXT, min_size=5, max_size=5), name=st.sampled_from(["chatml", "llama 3"]))
def test_any_text_stays_text_and_the_marks_are_the_templates_own(texts, name):
    tokenizer = TOKENIZERS[name]
    chat = [turn | {"content": text} for turn, text in zip(CHAT, texts, strict=True)]
    row = encode({"messages": chat}, tokenizer)
    text = tokenizer.apply_chat_template(chat, tokenize=False)
    assert text.startswith(tokenizer.decode(row["input_ids"]))
    stripped = [text.strip() if name == "llama 3" else text for text in texts]
    closing = "<|eot|>" if name == "llama 3" else "<|im_end|>"
    assert learnt(row, tokenizer) == [stripped[2] + closing, stripped[4] + closing]
    harmless = encode({"messages": CHAT}, tokenizer)
    assert specials(row["input_ids"], tokenizer) == specials(harmless["input_ids"], tokenizer)


@pytest.mark.parametrize("field", ["instruction", "input", "output"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_every_special_token_in_every_field_is_text(name, field):
    tokenizer = TOKENIZERS[name]
    harmless = {"instruction": "one", "input": "two", "output": "three"}
    counts = specials(encode(harmless, tokenizer)["input_ids"], tokenizer)
    for mark in MARKS:
        row = harmless | {field: f"a{mark}b {mark}"}
        encoded = encode(row, tokenizer)
        assert specials(encoded["input_ids"], tokenizer) == counts
        assert row[field] in tokenizer.decode(encoded["input_ids"])
        assert row[field] in format_prompt(*[tokenizer, *row.values()])
        prompt = encode_prompt(tokenizer, row["instruction"], row["input"])
        assert encoded["input_ids"][: len(prompt)] == prompt


def test_every_special_token_of_the_courses_llama_is_text(llama):
    _, tokenizer = llama
    harmless = {"instruction": "one", "input": "two", "output": "three"}
    counts = specials(encode(harmless, tokenizer)["input_ids"], tokenizer)
    assert counts.count("<|im_end|>") == 3
    for token in tokenizer.added_tokens_decoder.values():
        for field in harmless:
            row = harmless | {field: f"say {token.content} now"}
            encoded = encode(row, tokenizer)
            assert specials(encoded["input_ids"], tokenizer) == counts
            assert row[field] in tokenizer.decode(encoded["input_ids"])
            assert encoded["labels"].count(tokenizer.eos_token_id) == 1


def test_in_a_sentencepiece_vocabulary_no_space_comes_in():
    """Such tokenizers put a space in front of a text: a turn must not get one that is not there."""
    letters = {c: i for i, c in enumerate("▁abcdefghijklmnopqrstuvwxyzABI#:/[]<>|")}
    backend = Tokenizer(models.BPE(vocab=letters, merges=[]))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.add_special_tokens(["<s>", "</s>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '|' + m.role + '|' + m.content }}"
        "{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '|assistant|' }}{% endif %}"
    )
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "abc"}] * 2
    row = encode({"messages": chat}, tokenizer)
    whole = tokenizer.apply_chat_template(chat, tokenize=False)
    assert row["input_ids"] == tokenizer(whole, add_special_tokens=False)["input_ids"]
    closed = [*"abc", "</s>"]
    tokens = tokenizer.convert_ids_to_tokens([x for x in row["labels"] if x != IGNORE_INDEX])
    assert tokens == closed * 2
    row = encode({"instruction": "hi", "output": "a</s>b"}, tokenizer)
    tokens = tokenizer.convert_ids_to_tokens([x for x in row["labels"] if x != IGNORE_INDEX])
    assert tokens == [*"a</s>b", "</s>"]


# --- where chats come from, and what is none -----------------------------------------------------

SHAREGPT = [
    {"from": {"user": "human", "assistant": "gpt"}.get(m["role"], m["role"]), "value": m["content"]}
    for m in CHAT
]


def test_sharegpt_and_messages_are_the_same(tmp_path):
    tokenizer = byte_tokenizer(CHATML)
    rows = [
        {"messages": CHAT, "id": 1},
        {"conversations": SHAREGPT, "instruction": None},
        {"conversations": CHAT},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    loaded = load_instructions(tmp_path / "rows.jsonl")
    assert loaded.column_names == ["messages"] and loaded["messages"][:] == [CHAT] * 3
    encoded = encode_dataset(loaded, tokenizer).to_list()
    assert encoded == encode_dataset(rows, tokenizer).to_list()
    assert encoded == [{"messages": CHAT, **encode(rows[0], tokenizer)}] * 3


def turns(*pairs: tuple) -> dict:
    return {"messages": [{"role": role, "content": content} for role, content in pairs]}


ASK = ("user", "Hi")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"messages": []}, "'messages' should be a list of turns"),
        ({"messages": "Hi"}, "should be a list of turns, got str"),
        ({"conversations": ["Hi"]}, "turn 1 of 'conversations' should be an object"),
        ({"messages": [{"role": "user"}]}, "turn 1 of 'messages' should have 'role' and 'content'"),
        ({"messages": [{"from": "gpt", "content": "x"}]}, "or 'from' and 'value'; there is"),
        (turns(ASK, ("assistant", None)), "'content' in turn 2 .* should be text, got NoneType"),
        (turns(ASK, ("assistant", [{"type": "text", "text": "x"}])), "should be text, got list"),
        (turns(ASK, ("Assistant", "x")), "is of 'Assistant'. Expected one of system"),
        (turns((["user"], "x")), "should be text, got list"),
        (turns(ASK, ("assistant", "\ud83d")), "half a character"),
        (turns(ASK, ("assistant", "\ufdd1x")), "a character of no text"),
        (turns(ASK), "No turn of the assistant"),
        (turns(ASK, ("assistant", " ")), "An answer is empty"),
        (turns(ASK, ASK, ("assistant", "x")), "refuses this chat: .*must alternate"),
        (
            {"messages": [{"role": "assistant", "content": "x", "tool_calls": [{"id": 1}]}]},
            "turn 1 of 'messages' calls a tool",
        ),
    ],
)
def test_a_chat_that_cannot_be_used_says_why(row, words):
    with pytest.raises(ValueError, match=words):
        encode(row, byte_tokenizer(LLAMA2))
    with pytest.warns(UserWarning, match=r"Left out 1 of 2 rows: 1 .*\(row 2\)"):
        assert len(encode_dataset([{"messages": CHAT}, row], byte_tokenizer(LLAMA2))) == 1


@pytest.mark.parametrize(
    "shown", ["m.content[:4]", "m.content + m.content", "'...'"], ids=["cut", "twice", "hidden"]
)
def test_a_template_that_rewrites_answers_is_refused(shown):
    tokenizer = byte_tokenizer(CHATML.replace("m.content", shown))
    with pytest.raises(ValueError, match="leaves out or rewrites turn 3"):
        encode({"messages": CHAT}, tokenizer)


def test_chats_and_instructions_are_not_mixed(tmp_path):
    rows = [{"instruction": "Say hi", "output": "hi"}, {"messages": CHAT}]
    with pytest.raises(ValueError, match="row 2: instructions and chats are mixed"):
        encode_dataset(rows, byte_tokenizer(CHATML))
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 2: instructions and chats"):
        load_instructions(tmp_path / "rows.jsonl")
