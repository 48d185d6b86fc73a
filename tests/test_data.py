"""Instruction data: the generated task, the template, the label mask and the batches."""

import json
import re
from collections import Counter
from itertools import combinations

import pytest
import torch
from datasets import Dataset, DatasetDict, IterableDataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from llama_adapter_edu import encode_dataset
from llama_adapter_edu.course.tasks import home_commands as task
from llama_adapter_edu.course.tasks.home_commands import home_commands
from llama_adapter_edu.data.batches import collate, length_grouped_batches
from llama_adapter_edu.data.encoding import IGNORE_INDEX, encode, encode_prompt, format_prompt

SPLITS = ("train", "validation", "test")
ROW = {"instruction": "Add the numbers", "input": "2 and 3", "output": "5"}
CHAT = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def pattern(phrasing: str) -> str:
    """A phrasing without what would not make it another one: case, punctuation, politeness."""
    words = re.findall(r"[a-z']+|\{\w+\}", phrasing.lower())
    return " ".join(word for word in words if word not in ("please", "thanks"))


@pytest.fixture(scope="module")
def byte_tokenizer():
    """One token per byte, but "\\n\\n" is one token: the smallest tokenizer with a border trap."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    newline = "Ċ"
    vocabulary = {token: i for i, token in enumerate([*alphabet, newline * 2])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[(newline, newline)]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


@pytest.fixture(scope="module")
def chat_tokenizer(byte_tokenizer):
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_tokenizer.backend_tokenizer, bos_token="<s>", eos_token="</s>"
    )
    tokenizer.chat_template = CHAT
    return tokenizer


# --- the task ------------------------------------------------------------------------------------


def test_a_command_is_its_sentence_and_its_json():
    lights = task.SETTINGS[0]
    row = task.command(
        "upstairs office", lights, "Make it {value} for the {device} of the {room}", 80
    )
    assert row == {
        "instruction": "Make it 80% for the lights of the upstairs office",
        "input": "",
        "output": '{"room": "upstairs office", "device": "lights", "brightness": 80}',
    }


@pytest.mark.parametrize("one, other", list(combinations(SPLITS, 2)))
def test_splits_share_no_room_no_room_word_and_no_phrasing(one, other):
    words = [set(" ".join(task.rooms(split)).split()) for split in (one, other)]
    assert not words[0] & words[1]
    patterns = [
        {pattern(text) for kind in task.PHRASINGS[split].values() for text in kind}
        for split in (one, other)
    ]
    assert not patterns[0] & patterns[1]


def test_no_word_of_a_test_room_can_occur_in_a_training_row():
    phrasings = [text for kind in task.PHRASINGS["train"].values() for text in kind]
    said = [setting.spoken for setting in task.SETTINGS]
    train = " ".join([*phrasings, *said, *task.rooms("train")]).lower()
    assert not set(re.findall(r"[a-z']+", train)) & set(" ".join(task.rooms("test")).split())


@pytest.mark.parametrize("split", SPLITS)
def test_every_row_says_what_its_json_holds(split):
    settings = {(s.device, s.key): s for s in task.SETTINGS}
    for row in home_commands(split, 800):
        answer = json.loads(row["output"])
        assert json.dumps(answer) == row["output"]
        assert list(answer)[:2] == ["room", "device"] and len(answer) == 3
        key = list(answer)[2]
        setting = settings[answer["device"], key]
        assert answer["room"] in task.rooms(split) and answer[key] in setting.values
        sentence = row["instruction"].lower()
        assert row["input"] == "" and answer["room"] in sentence
        assert setting.device.lower() in sentence
        said = setting.spoken.format(answer[key])  # a number is said with its unit
        assert re.search(rf"(?<!\w){re.escape(said)}(?!\w)", sentence)


def test_the_first_training_rows_show_every_setting_in_at_least_ten_phrasings():
    shown = {(s.device, s.key): set() for s in task.SETTINGS}
    for row in home_commands("train", 640):
        answer = json.loads(row["output"])
        (key,) = set(answer) - {"room", "device"}
        gaps = row["instruction"].replace(answer["room"], "{room}")
        shown[answer["device"], key].add(re.sub(r"\d+", "{number}", gaps))
    assert min(map(len, shown.values())) >= 10


def test_one_kind_of_device_and_value_has_one_key():
    """So the words of a command settle its answer: "80%" and "lights" can only be brightness."""
    kinds = [(setting.device, setting.kind) for setting in task.SETTINGS]
    assert len(kinds) == len(set(kinds))


def test_rows_are_distinct_and_settings_balanced():
    rows = home_commands("train", 4800)
    assert len(set(rows["instruction"])) == 4800
    keys = Counter(tuple(json.loads(output))[2] for output in rows["output"])
    per_setting = 4800 / len(task.SETTINGS)
    for key, count in keys.items():
        expected = per_setting * sum(setting.key == key for setting in task.SETTINGS)
        assert count == pytest.approx(expected, rel=0.25)


def test_all_rows_are_distinct_and_one_more_is_refused():
    rows = home_commands("test")
    assert len(set(rows["instruction"])) == len(rows) >= 200
    with pytest.raises(ValueError, match=rf"has {len(rows)} rows; n={len(rows) + 1}"):
        home_commands("test", len(rows) + 1)


@pytest.mark.parametrize("n", [0, -1])
def test_a_useless_number_of_rows_is_refused(n):
    with pytest.raises(ValueError, match="Choose n from 1 to"):
        home_commands("test", n)


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match=r"'dev'.*train, validation, test"):
        home_commands("dev")


def test_a_seed_gives_the_same_rows_everywhere():
    assert home_commands("test", 3)["output"][:] == [
        '{"room": "parents\' gallery", "device": "lights", "power": "on"}',
        '{"room": "new gallery", "device": "speaker", "volume": 81}',
        '{"room": "yellow office", "device": "lights", "brightness": 38}',
    ]
    assert home_commands("test", 3).to_list() == home_commands("test", 50).to_list()[:3]
    assert home_commands("test", 3, seed=1).to_list() != home_commands("test", 3).to_list()


# --- the template and the label mask -------------------------------------------------------------


def test_alpaca_headings_where_there_is_no_chat_template(byte_tokenizer):
    assert format_prompt(byte_tokenizer, "Say hi") == (
        "### Instruction:\nSay hi\n\n### Response:\n"
    )
    assert format_prompt(byte_tokenizer, *ROW.values()) == (
        "### Instruction:\nAdd the numbers\n\n### Input:\n2 and 3\n\n### Response:\n5</s>"
    )


def test_the_chat_template_is_used_where_there_is_one(chat_tokenizer):
    assert format_prompt(chat_tokenizer, "Say hi") == "<|user|>Say hi</s><|assistant|>"
    assert format_prompt(chat_tokenizer, *ROW.values()) == (
        "<|user|>Add the numbers\n\n2 and 3</s><|assistant|>5</s>"
    )


def test_only_plain_text_gets_the_first_token_added(byte_tokenizer, chat_tokenizer):
    bos = byte_tokenizer.bos_token_id
    assert encode_prompt(byte_tokenizer, "Say hi").count(bos) == 1
    assert encode_prompt(byte_tokenizer, "Say hi")[0] == bos
    assert bos not in encode_prompt(chat_tokenizer, "Say hi")


@pytest.mark.parametrize("fixture", ["byte_tokenizer", "chat_tokenizer"])
def test_labels_are_the_answer_and_the_closing_token(fixture, request):
    tokenizer = request.getfixturevalue(fixture)
    row = encode(ROW, tokenizer)
    n_prompt = len(encode_prompt(tokenizer, ROW["instruction"], ROW["input"]))
    assert row["labels"][:n_prompt] == [IGNORE_INDEX] * n_prompt
    assert row["labels"][n_prompt:] == row["input_ids"][n_prompt:]
    assert tokenizer.decode(row["labels"][n_prompt:]) == "5</s>"
    assert row["labels"][-1] == tokenizer.eos_token_id


def test_no_token_spans_prompt_and_answer(byte_tokenizer):
    example = {"instruction": "Begin with an empty line", "output": "\nhi"}
    prompt = encode_prompt(byte_tokenizer, example["instruction"])
    joint = byte_tokenizer(format_prompt(byte_tokenizer, example["instruction"]) + "\nhi")
    assert joint["input_ids"][: len(prompt)] != prompt  # the trap: the two newlines are one token
    row = encode(example, byte_tokenizer)
    assert row["input_ids"][: len(prompt)] == prompt
    assert row["labels"][: len(prompt)] == [IGNORE_INDEX] * len(prompt)
    assert byte_tokenizer.decode(row["labels"][len(prompt) :]) == "\nhi</s>"


def test_missing_or_empty_input_is_no_input(byte_tokenizer):
    without = {"instruction": "Say hi", "output": "hi"}
    for value in ("", None):
        assert encode({**without, "input": value}, byte_tokenizer) == encode(
            without, byte_tokenizer
        )


@pytest.mark.parametrize(
    ("example", "words"),
    [
        ({"prompt": "Say hi", "completion": "hi"}, r"'instruction' is missing; .*\['prompt', 'com"),
        ({"instruction": "Say hi", "completion": "hi"}, "'output' is missing; there is"),
        ({"instruction": "Say hi", "output": None}, "'output' should be text, got NoneType"),
        ({"instruction": "Say hi", "output": 5}, "'output' should be text, got int: 5"),
        ({"instruction": "Say hi", "input": ["x"], "output": "hi"}, "'input' should be text"),
        ({"instruction": "Say hi", "output": " \n"}, "answer is empty"),
        ({"instruction": "Say\ufdd0", "output": "hi"}, r"character of no text, '\\ufdd0'"),
    ],
)
def test_a_row_without_its_texts_names_what_is_wrong(byte_tokenizer, example, words):
    with pytest.raises(ValueError, match=words):
        encode(example, byte_tokenizer)
    with pytest.raises(ValueError, match=f"No row is left.*row 1.*{words}"):
        encode_dataset(Dataset.from_list([example]), byte_tokenizer)


def test_a_long_row_is_refused_and_never_cut(byte_tokenizer):
    n_tokens = len(encode(ROW, byte_tokenizer)["input_ids"])
    assert len(encode(ROW, byte_tokenizer, max_length=n_tokens)["input_ids"]) == n_tokens
    with pytest.raises(ValueError, match=rf"{n_tokens} tokens .*max_length={n_tokens - 1}"):
        encode(ROW, byte_tokenizer, max_length=n_tokens - 1)


def test_a_tokenizer_without_eos_is_refused(byte_tokenizer):
    bare = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer.backend_tokenizer)
    with pytest.raises(ValueError, match="no eos token"):
        encode(ROW, bare)
    assert bare.decode(encode_prompt(bare, "Say hi")) == format_prompt(byte_tokenizer, "Say hi")


# --- data sets and batches -----------------------------------------------------------------------


def test_encode_dataset_keeps_the_texts_and_leaves_no_file(byte_tokenizer, tmp_path):
    source = tmp_path / "rows.json"
    source.write_text(json.dumps([ROW, {**ROW, "input": None}]), encoding="utf-8")
    dataset = Dataset.from_json(str(source), cache_dir=str(tmp_path / "cache"))
    before = sorted(tmp_path.rglob("*"))
    encoded = encode_dataset(dataset, byte_tokenizer)
    assert encoded.column_names == ["instruction", "input", "output", "input_ids", "labels"]
    assert encoded["input"][:] == ["2 and 3", ""]
    assert encoded[0] == {**ROW, **encode(ROW, byte_tokenizer)}
    assert sorted(tmp_path.rglob("*")) == before and encoded.cache_files == []


def test_rows_left_out_are_counted_with_reason_and_place(byte_tokenizer):
    long, empty = {**ROW, "output": "5" * 500}, {**ROW, "output": ""}
    rows = [ROW, long, ROW, {"instruction": "x"}, empty, long, long, long, empty, "text", ROW]
    with pytest.warns(UserWarning) as caught:
        encoded = encode_dataset(rows, byte_tokenizer)
    assert encoded["output"][:] == ["5", "5", "5"]
    (message,) = [str(warning.message) for warning in caught]
    assert message.startswith("Left out 8 of 11 rows: ")
    for reason in (
        "4 longer than max_length=512 tokens (row 2, row 6, row 7, ...)",
        "2 without the fields or texts of a row (row 4, row 10)",
        "2 with an empty answer (row 5, row 9)",
    ):
        assert reason in message
    assert len(encode_dataset([ROW, long], byte_tokenizer, max_length=None)) == 2


def test_encode_dataset_without_a_row_left_is_refused(byte_tokenizer):
    with pytest.raises(ValueError, match=r"1 of 1 rows: 1 longer than max_length=4 tokens \(row 1"):
        encode_dataset([ROW], byte_tokenizer, max_length=4)
    with pytest.raises(ValueError, match="no rows"):
        encode_dataset([], byte_tokenizer)


def test_rows_may_come_in_any_container_and_a_stream_stays_one(byte_tokenizer):
    rows = [{**ROW, "output": str(number), "id": number} for number in range(1100)]
    of_list = encode_dataset(rows, byte_tokenizer).to_list()
    assert [row["output"] for row in of_list] == [row["output"] for row in rows]
    assert encode_dataset(Dataset.from_list(rows), byte_tokenizer).to_list() == of_list
    assert encode_dataset(iter(rows), byte_tokenizer).to_list() == of_list
    assert encode_dataset(tuple(rows), byte_tokenizer).to_list() == of_list

    read = []

    def generate():
        for row in rows:
            read.append(row["id"])
            yield row

    for stream in (
        IterableDataset.from_generator(generate),  # of unknown columns
        Dataset.from_list(rows).to_iterable_dataset(),
    ):
        encoded = encode_dataset(stream, byte_tokenizer)
        assert isinstance(encoded, IterableDataset)
        assert len(read) <= 1
        assert list(encoded) == of_list
        read.clear()


def test_a_stream_counts_what_it_leaves_out_and_refuses_to_give_nothing(byte_tokenizer):
    useless = {**ROW, "output": ""}
    stream = Dataset.from_list([ROW, useless, ROW] + [useless] * 1500).to_iterable_dataset()
    with pytest.warns(UserWarning) as caught:
        assert len(list(encode_dataset(stream, byte_tokenizer))) == 2
    messages = [str(warning.message) for warning in caught]
    assert "Left out 998 of 1000 rows: 998 with an empty answer (row 2, row 4, ro" in messages[0]
    assert "Left out 503 of 503 rows" in messages[1] and "row 1001" in messages[1]
    stream = Dataset.from_list([useless] * 3).to_iterable_dataset()
    with pytest.raises(ValueError, match="None of the stream's first 3 rows is left"):
        list(encode_dataset(stream, byte_tokenizer))


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        (
            DatasetDict(train=Dataset.from_list([ROW]), dev=Dataset.from_list([ROW])),
            "'train', 'dev'",
        ),
        (ROW, "a single row in a list"),
        ("rows.jsonl", "load_instructions"),
        (7, "pass one"),
    ],
)
def test_what_is_no_rows_is_refused_in_a_sentence(byte_tokenizer, dataset, words):
    with pytest.raises(ValueError, match=f"Expected rows, got .*{words}"):
        encode_dataset(dataset, byte_tokenizer)


def test_collate_pads_on_the_right():
    rows = [
        {"input_ids": [5, 6, 7], "labels": [IGNORE_INDEX, 6, 7], "instruction": "left out"},
        {"input_ids": [8, 7], "labels": [IGNORE_INDEX, 7], "instruction": "left out"},
    ]
    batch = collate(rows, pad_token_id=7)  # 7 is the closing token as well
    expected = {
        "input_ids": [[5, 6, 7], [8, 7, 7]],
        "attention_mask": [[1, 1, 1], [1, 1, 0]],
        "labels": [[IGNORE_INDEX, 6, 7], [IGNORE_INDEX, 7, IGNORE_INDEX]],
    }
    assert {name: tensor.tolist() for name, tensor in batch.items()} == expected
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())
    as_tensors = [{k: torch.tensor(row[k]) for k in ("input_ids", "labels")} for row in rows]
    assert {name: tensor.tolist() for name, tensor in collate(as_tensors, 7).items()} == expected


def test_collate_refuses_what_it_cannot_pad():
    with pytest.raises(ValueError, match="at least one row"):
        collate([], 0)
    with pytest.raises(ValueError, match="pad_token"):
        collate([{"input_ids": [1], "labels": [1]}], None)


def test_length_grouping_uses_every_row_once_and_pads_less():
    lengths = [
        int(length) for length in torch.randint(10, 200, (101,), generator=torch.manual_seed(0))
    ]
    batches = length_grouped_batches(lengths, 8, seed=0)
    assert sorted(row for batch in batches for row in batch) == list(range(101))
    assert sorted(map(len, batches)) == [5] + [8] * 12

    def padding(batches):
        return sum(max(lengths[r] for r in b) * len(b) for b in batches) - sum(lengths)

    in_order = [list(range(i, min(i + 8, 101))) for i in range(0, 101, 8)]
    assert padding(batches) < padding(in_order) / 5
    longest = [max(lengths[row] for row in batch) for batch in batches]
    assert longest != sorted(longest)


def test_length_grouping_is_shuffled_by_its_seed():
    lengths = [10] * 64
    one = length_grouped_batches(lengths, 8, seed=0)
    assert one == length_grouped_batches(lengths, 8, seed=0)
    other = length_grouped_batches(lengths, 8, seed=1)
    assert {frozenset(batch) for batch in one} != {frozenset(batch) for batch in other}
    with pytest.raises(ValueError, match="batch_size"):
        length_grouped_batches(lengths, 0, seed=0)


# --- on the course's Llama -----------------------------------------------------------------------


def test_the_courses_llama_trains_on_exactly_what_it_is_given(llama):
    _, tokenizer = llama
    for row in home_commands("train", 50):
        encoded = encode(row, tokenizer)
        given = tokenizer.apply_chat_template(
            [{"role": "user", "content": row["instruction"]}],
            add_generation_prompt=True,
            return_dict=True,
        )["input_ids"]
        assert encoded["input_ids"][: len(given)] == given
        assert encoded["labels"] == [IGNORE_INDEX] * len(given) + encoded["input_ids"][len(given) :]
        text = format_prompt(tokenizer, row["instruction"], response=row["output"])
        assert tokenizer.decode(encoded["input_ids"]) == text
        assert encoded["input_ids"][-1] == tokenizer.eos_token_id


def test_padding_changes_nothing_the_model_learns(llama):
    model, tokenizer = llama
    rows = encode_dataset(home_commands("train", 2), tokenizer).to_list()
    batch = collate(rows, tokenizer.pad_token_id)
    with torch.no_grad():
        together = model(**batch).loss
        alone = [model(**collate([row], tokenizer.pad_token_id)).loss for row in rows]
    n_learnt = torch.tensor([sum(x != IGNORE_INDEX for x in row["labels"]) for row in rows])
    mean = (torch.stack(alone) * n_learnt).sum() / n_learnt.sum()
    torch.testing.assert_close(together, mean, rtol=1e-4, atol=1e-4)
