"""Small faults of library and tools, each with the tests that must find it.

`make faults` puts each into a copy of the project and runs these tests there: see `faults.py`.
A fault is one replaced text, which must stand exactly once in its file.
"""

from typing import NamedTuple


class Fault(NamedTuple):
    file: str
    old: str
    new: str
    tests: str  # arguments of pytest, below tests/


LIBRARY = "llama_adapter_edu/"
ATTENTION = LIBRARY + "method/attention.py"
GATED = LIBRARY + "method/gated_prompts.py"
IMAGE = LIBRARY + "method/image_prompts.py"
ENCODING = LIBRARY + "data/encoding.py"
BATCHES = LIBRARY + "data/batches.py"
EVALUATE = LIBRARY + "data/evaluate.py"
INSTRUCTIONS = LIBRARY + "data/instructions.py"
CONFIG = LIBRARY + "training/config.py"
LOSS = LIBRARY + "training/loss.py"
STEP = LIBRARY + "training/step.py"
LOOP = LIBRARY + "training/loop.py"
STATE = LIBRARY + "training/state.py"
RESUME = LIBRARY + "training/resume.py"
PEFT = LIBRARY + "files/formats/peft.py"
LIT = LIBRARY + "files/formats/lit.py"
OWN = LIBRARY + "files/formats/own.py"
WEIGHTS = LIBRARY + "files/weights.py"
SAFE = LIBRARY + "files/safe_files.py"
MANAGE = LIBRARY + "adapters/manage.py"
INSPECT = LIBRARY + "adapters/inspect.py"
GGUF = LIBRARY + "base_models/gguf.py"
COURSE_LLAMA = LIBRARY + "base_models/course_llama.py"
ASSERTS = LIBRARY + "course/checks/asserts.py"
CHECKER = LIBRARY + "course/checks/checker.py"

FAULTS = [
    # the method
    Fault(ATTENTION, '"b g t d -> b (g r) t d"', '"b g t d -> b (r g) t d"', "test_attention.py"),
    Fault(
        ATTENTION, "> rearrange(query_position", ">= rearrange(query_position", "test_attention.py"
    ),
    Fault(
        ATTENTION,
        "torch.arange(n_keys - n_queries, n_keys, device",
        "torch.arange(0, n_queries, device",
        "test_attention.py -k fewer_queries",
    ),
    Fault(
        ATTENTION,
        "theta ** (-pair / head_dim)",
        "theta ** (-2 * pair / head_dim)",
        "test_attention.py -k rotary",
    ),
    Fault(ATTENTION, "[-second, first]", "[second, -first]", "test_attention.py -k rotary"),
    Fault(
        ATTENTION,
        "torch.cat([self.key, key], dim=2)",
        "torch.cat([key, self.key], dim=2)",
        "test_attention.py -k cache",
    ),
    Fault(
        GATED,
        'rearrange(query, "b (g r) s d -> b g r s d"',
        'rearrange(query, "b (r g) s d -> b g r s d"',
        "test_slide.py -k equations",
    ),
    Fault(
        GATED,
        'rearrange(weights, "b (g r) s p -> b g r s p"',
        'rearrange(weights, "b (r g) s p -> b g r s p"',
        "test_slide.py",
    ),
    Fault(
        GATED,
        "value, scale=scale)",
        "value)",
        "test_adaption_prompt.py -k own_scale",
    ),
    Fault(
        GATED,
        '"tanh": torch.tanh',
        '"tanh": torch.sigmoid',
        "test_families.py -k closed",
    ),
    Fault(
        GATED,
        'repeat(x, "g p d -> (g r) p d", r=r)',
        'repeat(x, "g p d -> (r g) p d", r=r)',
        "test_adaption_prompt.py -k taught_function",
    ),
    Fault(
        GATED,
        "if moved.dtype == tensor.dtype else tensor.to(moved.device)",
        "",
        "test_adaption_prompt.py -k float32",
    ),
    Fault(
        IMAGE,
        '"g (b p) d -> b g p d"',
        '"g (p b) d -> b g p d"',
        "test_vision.py -k keys_and_values",
    ),
    Fault(IMAGE, '"h -> (b h r)"', '"h -> (h b r)"', "test_vision.py -k row"),
    # data
    Fault(
        ENCODING,
        "[IGNORE_INDEX] * len(prompt) + answer}",
        "prompt + answer}",
        "test_data.py -k labels",
    ),
    Fault(
        ENCODING,
        '["input_ids"] + [tokenizer.eos_token_id]',
        '["input_ids"]',
        "test_data.py -k closing",
    ),
    Fault(
        ENCODING,
        "add_special_tokens=not tokenizer.chat_template",
        "add_special_tokens=True",
        "test_data.py -k token",
    ),
    Fault(ENCODING, "length > max_length", "length > max_length + 1", "test_data.py -k long"),
    Fault(
        BATCHES,
        "padding_value=IGNORE_INDEX",
        "padding_value=pad_token_id",
        "test_data.py -k collate",
    ),
    Fault(
        BATCHES,
        "pad_sequence(mask, batch_first=True)",
        "pad_sequence(mask, batch_first=True, padding_value=1)",
        "test_data.py -k collate",
    ),
    Fault(
        BATCHES,
        "order.sort(key=lambda row: lengths[row])",
        "pass",
        "test_data.py -k length_grouping",
    ),
    Fault(
        EVALUATE,
        "a.strip() == e.strip()",
        "e.strip() in a.strip()",
        "test_notebooks.py -k 'committed and lesson_07'",
    ),
    Fault(INSTRUCTIONS, 'encoding="utf-8-sig"', 'encoding="utf-8"', "test_instructions.py -k mark"),
    # training
    Fault(
        LOSS,
        "labels.shape[1] - 1 - int(labelled[0])",
        "labels.shape[1] - 2 - int(labelled[0])",
        "test_finetune.py -k 'token or cut'",
    ),
    Fault(
        LOSS, "[-n_columns - 1 : -1]", "[-n_columns:]", "test_finetune.py -k 'token or written_out'"
    ),
    Fault(STEP, "weight * loss / n_tokens", "weight * loss", "test_finetune.py -k micro"),
    Fault(STEP, "for label in row[1:])", "for label in row)", "test_finetune.py -k first"),
    Fault(
        CONFIG,
        'if p.ndim <= 1], "weight_decay": 0.0}',
        'if p.ndim <= 1], "weight_decay": config.weight_decay}',
        "test_training_config.py",
    ),
    Fault(
        CONFIG,
        "(step + 1) / (warmup_steps + 1)",
        "step / (warmup_steps + 1)",
        "test_training_config.py",
    ),
    Fault(
        LOOP, "set_seed(config.seed + step,", "set_seed(config.seed,", "test_resume.py -k 20_random"
    ),
    Fault(LOOP, "model.train(was_training)", "pass", "test_finetune.py -k mode"),
    Fault(
        STATE,
        'state["sha256"] != hashlib.sha256(content).hexdigest()',
        "False",
        "test_resume.py -k broken",
    ),
    Fault(
        RESUME,
        "os.rename(whole, path)",
        "path.mkdir(); write_state(path, self.about, model, optimizer, history, self.accelerator)",
        "test_resume.py -k any_file_operation",
    ),
    Fault(
        RESUME,
        "self._checkpoints()[:-KEPT]",
        "self._checkpoints()[: KEPT - 1]",
        "test_resume.py -k 'newest or full_disk'",
    ),
    # adapters and files
    Fault(
        MANAGE,
        "prompt.requires_grad_(name == adapter_name)",
        "prompt.requires_grad_(True)",
        "test_adapt.py -k only_one_trains",
    ),
    Fault(
        INSPECT,
        "scale).float().softmax(dim=-1)",
        "scale).float().softmax(dim=-2)",
        "test_inspect_prompts.py",
    ),
    Fault(
        PEFT,
        'weights = one_gate_per_layer(fold_tanh(weights), "PEFT")',
        'weights = one_gate_per_layer(weights, "PEFT")',
        "test_formats.py -k peft",
    ),
    Fault(
        PEFT, "if attention.o_proj.bias is not None:", "if False:", "test_formats.py -k otherwise"
    ),
    Fault(LIT, "start = min(int(", "start = max(int(", "test_formats.py -k lit"),
    Fault(LIT, '"h -> 1 1 h 1"', '"h -> 1 h 1 1"', "test_formats.py -k 'wrote and litgpt'"),
    Fault(
        WEIGHTS,
        "range(n_layers - adapter_layers, n_layers)",
        "range(adapter_layers)",
        "test_formats.py -k peft",
    ),
    Fault(WEIGHTS, "if (gate != gate[0]).any():", "if False:", "test_formats.py -k equal_gates"),
    Fault(
        OWN,
        "if settings not in (None, _as_text(config)):",
        "if False:",
        "test_checkpoint.py -k killed_between",
    ),
    Fault(
        SAFE,
        "os.replace(Path(unfinished, file), folder / file)",
        "(folder / file).write_bytes(contents[file])",
        "test_checkpoint.py -k interrupted",
    ),
    Fault(
        SAFE,
        "elif not tensor.float().isfinite().all():",
        "elif False:",
        "test_checkpoint.py -k broken",
    ),
    Fault(SAFE, "weights_only=True", "weights_only=False", "test_formats.py -k code_in_it"),
    # base models
    Fault(
        GGUF,
        '"(heads pairs two) m -> (heads two pairs) m"',
        '"(heads two pairs) m -> (heads two pairs) m"',
        "test_llama.py -k equals_transformers",
    ),
    Fault(
        GGUF,
        "individual_digits=True",
        "individual_digits=False",
        "test_llama.py -k converted_tokenizer",
    ),
    Fault(
        COURSE_LLAMA,
        "(folder / name).stat().st_size == size",
        "(folder / name).exists()",
        "test_llama.py -k damaged_conversion",
    ),
    Fault(
        COURSE_LLAMA,
        'with FileLock(cache / ".lock"):',
        "if True:",
        "test_llama.py -k two_processes",
    ),
    # the course's checks and reports
    Fault(
        ASSERTS,
        "if actual.shape != expected.shape:",
        "if actual.numel() != expected.numel():",
        "test_asserts.py",
    ),
    Fault(
        ASSERTS,
        "rtol=tol, atol=tol, equal_nan=True)\n    if not wrong.any()",
        "rtol=tol, atol=1.0, equal_nan=True)\n    if not wrong.any()",
        "test_asserts.py",
    ),
    Fault(
        CHECKER, "if _version(value) != before[key]:", "if False:", "test_checking.py -k in_place"
    ),
    Fault(
        CHECKER,
        "if theirs is ABSENT or theirs is right:",
        "if theirs is ABSENT:",
        "test_checking.py -k reference",
    ),
    Fault(
        LIBRARY + "course/progress/class_table.py",
        'errors="backslashreplace"',
        'errors="strict"',
        "test_class_report.py -k half",
    ),
    # tools
    Fault(
        "tools/regions.py",
        'f"{indent}raise NotImplementedError"',
        'f"{indent}pass"',
        "test_build.py -k solutions",
    ),
    Fault("tools/names.py", "elif name not in bound:", "else:", "test_build.py -k refused"),
    Fault(
        "tools/code_rules.py",
        "if len(set(found)) < ANSWERS:",
        "if len(found) < ANSWERS:",
        "test_build.py -k refused",
    ),
    Fault(
        "tools/text_rules.py",
        "if len(marks) > level + 1:",
        "if len(marks) > level + 2:",
        "test_build.py -k refused",
    ),
    Fault(
        "tools/compare.py",
        "if cell.execution_count != count:",
        "if False:",
        "test_build.py -k differs",
    ),
    Fault("tools/run.py", "if ADDRESS.search(text):", "if False:", "test_build.py -k stored"),
    Fault(
        "tools/colab.py",
        "if not settings.repository.startswith(GITHUB):",
        "if not settings.repository:",
        "test_colab.py -k another_host",
    ),
]
