# %% [markdown]
# # Lesson 00: Start here
#
# *15 minutes*
#
# At the end you have
#
# * seen a small Llama fail at a task that it will master in lesson 11,
# * the idea of LLaMA-Adapter in one picture,
# * solved and checked your first exercise.
#
# You need PyTorch and a rough idea of what a transformer is. No GPU, and no network after the first
# download.

# %% tags=["nbval-ignore-output"]
import torch
from llama_adapter_edu import generate_answers, load_llama
from llama_adapter_edu.course import assert_close, check, predict
from llama_adapter_edu.course.figures import token_way
from llama_adapter_edu.course.tasks.home_commands import home_commands
from llama_adapter_edu.data.evaluate import exact_match

model, tokenizer = load_llama()

# %% [markdown]
# ## A Llama at home
#
# `model` is SmolLM2-135M-Instruct, a small Llama. The first run downloads it (98 MB).
#
# It is no toy: architecture and size are those that its makers trained and published. But its
# weights come *rounded*. A third party stored them in few bits (106 of the 134.5 million in 4 bits,
# a format called Q4_1, the rest in 8), and the course expands them to 32 bits again. So it is a
# little less exact than the published model; by how much, nobody here has measured. All that the
# course computes, it computes with these weights.
#
# A Llama reads and writes **tokens**: short words, pieces of long ones, signs. Let us ask it
# something. It always takes the likeliest next token, so the answer is the same each time. We cut
# it off after 24 tokens.


# %%
def ask(*texts: str) -> list[str]:
    """The model's answer to each text, on one line."""
    rows = [{"instruction": text, "input": ""} for text in texts]
    answers = generate_answers(model, tokenizer, rows, max_new_tokens=24)
    return [" ".join(answer.split()) for answer in answers]


print(ask("What is the capital of France?"))

# %% [markdown]
# Good. Now a task for a smart home. The model gets a command and should answer with JSON that a
# machine can read.

# %%
commands = home_commands("test", 3)


def show_answers(prompt: str) -> int:
    """Print each command, what we want to read, what the model says; return how many are equal."""
    answers = ask(*(prompt.format(command["instruction"]) for command in commands))
    for command, answer in zip(commands, answers, strict=True):
        print(f"command  {command['instruction']}")
        print(f"expected {command['output']}")
        print(f"answer   {answer}\n")
    share = exact_match(answers, commands["output"])
    print(f"exact match: {share:.0%}")
    return round(share * len(commands))


n_right = show_answers("{}")

# %% [markdown]
# It fails, but that was not fair: nobody told it what we want. So we tell it, with two solved
# examples in the prompt. **Before you run that, predict**: write your guess in place of `...`, in
# quotes, such as `mine="two"`, or its place in the list, such as `mine=3`. There is no mark for it;
# you only remember better what you have guessed at.

# %% tags=["nbval-ignore-output"]
guess = predict(
    "With two solved examples, how many of the 3 answers will be right?",
    options=["none", "one", "two", "all three"],
    mine=...,
)

# %%
n_right = show_answers(
    """Turn the command into JSON.
Command: Set the lights in the old kitchen to 40%
JSON: {{"room": "old kitchen", "device": "lights", "brightness": 40}}
Command: Open the blinds of the big attic
JSON: {{"room": "big attic", "device": "blinds", "position": "open"}}
Command: {}
JSON:"""
)

# %% tags=["nbval-ignore-output"]
guess.compare(["none", "one", "two", "all three"][n_right])

# %% [markdown]
# Now it writes JSON, but not ours. The text in front of the command did change the answer. We only
# do not know the right text.
#
# So why text? What the model reads of a token is a row of 576 numbers. Let us put rows of free
# numbers in front, and let gradient descent find them. Such rows are called **soft prompts**. The
# Llama stays as it is.
#
# ## The idea in one picture
#
# LLaMA-Adapter (Zhang et al., arXiv 2303.16199) puts them into the attention of the upper layers.
# This is their Figure 2, in our own drawing.
#
# ![Left: a Llama with N layers. All its layers are frozen, marked by a snowflake. Each of the upper
# L layers gets K prompts of its own, which are learnt, marked by a flame. Right: inside the
# attention of one upper layer, the token that asks looks at the tokens, with a softmax over tokens,
# and at the prompts, with a second softmax over prompts. The result from the prompts is multiplied
# by a learnt gate, one per head, 0 at the start. Then both are added and go through the frozen
# output layer.](figures/00_llama_adapter.svg)
#
# Two things to see:
#
# * **Two softmaxes.** What the token reads from the prompts cannot take weight away from the other
#   tokens.
# * **A gate.** What comes from the prompts is multiplied by a number that starts at 0. So the
#   adapted Llama starts as exactly the Llama it was, and opens the gates as it learns. (To be
#   exact: multiplied by the number's tanh, which stays between −1 and 1. Below zero, what the
#   prompts say is taken away.)
#
# Go through it yourself: one token, one head, forwards and back, with the numbers of our Llama after
# the training of `make demo`.

# %% tags=["nbval-ignore-output"]
token_way()

# %% [markdown]
# ## How small is it?
#
# In this picture only two things are learnt: prompts and gates. Say an adapter of our Llama has 10
# prompts per layer. The paper takes the upper 30 of LLaMA-7B's 32 layers. Our Llama has only 30,
# and we take them all: in the picture, the lower box is then empty. A prompt is a row of 576
# numbers, and each of the 9 heads has a gate.

# %%
one_layer = 10 * 576 + 9
print(f"{one_layer:,} numbers per layer, {30 * one_layer:,} in all layers")

# %% [markdown]
# You will write this down for any Llama. It is your first exercise.
#
# ## How the course works
#
# Run the cells from top to bottom. An exercise is three cells:
#
# 1. The **card**: what to do, and three hints. Click on a hint to open it; the first one says
#    least.
# 2. The **exercise**: your code takes the place of everything from `# YOUR CODE HERE` to `raise
#    NotImplementedError`. Lines between the two are a beginning: complete them or write your own.
#    Run the cell.
# 3. The **check**: run it. Its asserts are in sight. Many of its lines are mistakes that it
#    recognises: you need not read them.
#
# Some exercises have one more cell, `assemble`: a second way in, where you put given lines in order
# instead of writing them. Two of the lines are wrong.
#
# A solved check shows a green line with ✓. Otherwise a box says in words what is wrong (✗) or still
# open (○). Until you solve it, the cells below use the course's own function, so **you are never
# stuck**: you may skip an exercise and come back. Once it is solved, they use *yours*.
#
# Do you work with a chat assistant? Give it the text of [Learning with an
# assistant](../docs/assistants.md), and it will teach instead of solving. An assistant that reads the
# project's files finds the same in `AGENTS.md`.
#
# To see how far you are, save the notebook and type in a terminal:
#
# ```
# pytest --nbval notebooks/00_start_here.ipynb
# ```
#
# It runs the whole notebook afresh and ends with a table, one row per exercise.

# %% [markdown] tags=["card"]
# ### Exercise 0.1 · The size of an adapter
#
# *easy ●○○ · 2 minutes*
#
# Return how many numbers an adapter learns. Each adapted layer has its own prompts and its own
# gates.
#
# <details><summary>Hint 1: direction</summary>
#
# Do the sum from above, with names instead of numbers: first for one layer, then for all.
#
# </details>
# <details><summary>Hint 2: axes</summary>
#
# The prompts of a layer have two axes, `adapter_len` and `model_width`. Its gates have one,
# `n_heads`.
#
# </details>
# <details><summary>Hint 3: a line with blanks</summary>
#
# `return adapter_layers * (____ * model_width + ____)`
#
# </details>


# %% tags=["exercise"]
def adapter_size(adapter_len: int, adapter_layers: int, model_width: int, n_heads: int) -> int:
    """How many numbers a LLaMA-Adapter learns.

    Each of the `adapter_layers` layers (the paper's L) has `adapter_len` prompts (the paper's K),
    each a row of `model_width` numbers, and one gate for each of its `n_heads` heads.
    """
    ### BEGIN SOLUTION
    return adapter_layers * (adapter_len * model_width + n_heads)
    ### END SOLUTION


# %% tags=["check"]
@check(
    "0.1",
    "adapter_size",
    adapter_len=[6, 10],
    adapter_layers=[3, 30],
    model_width=[7, 576],
    n_heads=[4, 9],
)
def _(adapter_len, adapter_layers, model_width, n_heads):
    mine = adapter_size(
        adapter_len=adapter_len,
        adapter_layers=adapter_layers,
        model_width=model_width,
        n_heads=n_heads,
    )
    prompts, gates = torch.zeros(adapter_len, model_width).numel(), torch.zeros(n_heads).numel()
    right = sum(prompts + gates for _ in range(adapter_layers))
    mistakes = {
        "the gates are missing: add one per head in each layer": adapter_layers * prompts,
        "each head has a gate of its own: add n_heads per layer, not 1": adapter_layers
        * (prompts + 1),
        "every layer has its own gates: multiply them by adapter_layers, too": adapter_layers
        * prompts
        + gates,
        "every layer has its own prompts: multiply them by adapter_layers, too": prompts
        + adapter_layers * gates,
        "this is one layer: multiply by adapter_layers": prompts + gates,
        "use the arguments, not the numbers of our Llama": adapter_layers * (10 * 576 + 9),
        "a layer's gates stand beside its prompts: add them, do not multiply": adapter_layers
        * prompts
        * gates,
        "every prompt has model_width numbers: multiply them, do not add": adapter_layers
        * (adapter_len + model_width + n_heads),
        "the prompts are missing: each has model_width numbers": adapter_layers * gates,
        "the gates belong to heads, not to prompts: n_heads per layer": adapter_layers
        * (prompts + gates * adapter_len),
        "keys and values are made of the prompts, not learnt: count each prompt once": adapter_layers
        * (2 * prompts + gates),
        "use the argument model_width, not our Llama's 576": adapter_layers
        * (576 * adapter_len + gates),
        "use the arguments, not our Llama's numbers": 30 * (10 * 576 + 9),
        "use the arguments, not LLaMA-7B's numbers": 30 * (10 * 4096 + 32),
        "one layer too many: there are adapter_layers of them": (adapter_layers + 1)
        * (prompts + gates),
        "this is the size in bytes; count the numbers": 4 * right,
    }
    assert_close(mine, right, mistakes=mistakes)


# %% [raw] tags=["wrong"] says="the gates are missing"
"""
def adapter_size(adapter_len, adapter_layers, model_width, n_heads):
    return adapter_len * model_width * adapter_layers
"""

# %% [raw] tags=["wrong"] says="every layer has its own gates"
"""
def adapter_size(adapter_len, adapter_layers, model_width, n_heads):
    return adapter_layers * adapter_len * model_width + n_heads
"""

# %% [raw] tags=["wrong"] says="each head has a gate of its own"
"""
def adapter_size(adapter_len, adapter_layers, model_width, n_heads):
    return adapter_layers * (adapter_len * model_width + 1)
"""

# %% [raw] tags=["wrong"] says="this is one layer"
"""
def adapter_size(adapter_len, adapter_layers, model_width, n_heads):
    return adapter_len * model_width + n_heads
"""

# %% [raw] tags=["wrong"] says="expected 138, got 42"
"""
def adapter_size(adapter_len, adapter_layers, model_width, n_heads):
    return 42
"""

# %% [raw] tags=["right"]
"""
def adapter_size(adapter_len, adapter_layers, model_width, n_heads):
    prompts = adapter_len * model_width * adapter_layers
    gates = n_heads * adapter_layers
    return prompts + gates
"""

# %% [raw] tags=["right"]
"""
def adapter_size(adapter_len, adapter_layers, model_width, n_heads):
    return sum(adapter_len * model_width + n_heads for layer in range(adapter_layers))
"""

# %% [markdown]
# Your function counts for us: once for our Llama, once for the paper's. Predict first.

# %% tags=["nbval-ignore-output"]
guess = predict(
    "How much will we train, as a share of our Llama's own numbers?",
    options=["about 10 %", "about 1 %", "about 0.1 %"],
    mine=...,
)

# %%
total = sum(parameter.numel() for parameter in model.parameters())
ours = adapter_size(
    adapter_len=10,
    adapter_layers=30,
    model_width=model.config.hidden_size,
    n_heads=model.config.num_attention_heads,
)
print(f"our Llama: {ours:,} numbers to learn, next to {total:,} frozen ones: {ours / total:.2%}")

llama_7b = adapter_size(adapter_len=10, adapter_layers=30, model_width=4096, n_heads=32)
print(f"LLaMA-7B: {llama_7b:,} numbers to learn")

# %% tags=["nbval-ignore-output"]
shares = {"about 10 %": 0.1, "about 1 %": 0.01, "about 0.1 %": 0.001}
guess.compare(min(shares, key=lambda name: abs(shares[name] - ours / total)))

# %% [markdown]
# The last number is the paper's 1.2 million: the first of its promises.
#
# ## Four promises
#
# The paper makes four of them (its Figure 1). You will measure each one yourself.
#
# It exists in several editions. This course follows the published one (ICLR 2024), and says so
# where the first one (arXiv v1, March 2023) has another number or formula. (The published one also
# tries the method beyond Llamas: on the vision models ViT and CLIP, and on RoBERTa.) The numbers
# here are from its Tables 1 and 2 (Tables 3 and 2 of arXiv v1).
#
# | promise | in the paper, with LLaMA-7B | you measure it in |
# |---|---|---|
# | few parameters | 1.2 million learnt; Alpaca trained all 7 billion | now; lesson 06 counts them in the model |
# | fast | 1 hour on 8 A100 GPUs; Alpaca 3 hours, Alpaca-LoRA 1.5 hours (not in arXiv v1) | lesson 11 |
# | expertise to plug in | a file of 4.7 MB per task, next to one Llama of 13 GB | lessons 06 and 11 |
# | several modalities | 85.19 % right answers on ScienceQA, with 1.8 million learnt | lesson 09 |
#
# *Alpaca* is the same LLaMA-7B with all its numbers trained on 52,000 instructions; *Alpaca-LoRA*
# has small matrices added to its weights instead. *ScienceQA* is a collection of school questions,
# many of them with a picture.
#
# **Should you use LLaMA-Adapter at work?** To understand adapters, prompts and gates, yes: it shows
# all of them in a few lines. For the best score, take LoRA first. In PEFT's public comparison
# (method_comparison/MetaMathQA in huggingface/peft at commit 5d602fd; Llama-3.2-3B on school
# mathematics) LoRA of rank 64 (rsLoRA) gets 51.3 % right, the best method 52.6 %, prefix tuning
# 41.6 %, and adaption prompts, this paper's method, 38.4 %. What speaks for prompts is their small
# file, a gate that tells how much each head uses them, and images that can be added to them. Lesson
# 11 measures LoRA and full fine-tuning on our own task.
#
# ## Ten letters
#
# Shapes are half of the work in attention code. So each kind of axis has one letter, the same in
# code, text and messages. `b h s d` reads: for each row of the batch, each head and each query
# position, `d` numbers.
#
# | letter | axis | in our Llama |
# |---|---|---|
# | `b` | batch | |
# | `s` | query position: the token that asks | |
# | `t` | key position: the token that is looked at | |
# | `p` | prompt slot | 10 |
# | `h` | query head | 9 |
# | `g` | key/value head | 3 |
# | `r` | query heads per key/value head, `h = g r` | 3 |
# | `d` | head width | 64 |
# | `m` | model width, here `m = h d` | 576 |
# | `v` | vocabulary | 49,152 |
#
# You need not learn them now: each lesson repeats those it uses. The sizes stand in the model's
# config.

# %%
config = model.config
sizes = {
    "h": config.num_attention_heads,
    "g": config.num_key_value_heads,
    "d": config.head_dim,
    "m": config.hidden_size,
    "v": config.vocab_size,
}
print(", ".join(f"{letter} = {size}" for letter, size in sizes.items()))

# %% [markdown]
# ## The map
#
# | lesson | you build |
# |---|---|
# | 00 Start here | a first check |
# | 01 Shapes with einops | heads, scores and the causal softmax, each in a line |
# | 02 A Llama's attention | one whole attention layer of the real Llama |
# | 03 Soft prompts | prompt keys and values, and their own softmax |
# | 04 The zero-init gate | the paper's attention, equation 7 |
# | 05 From a slide to a layer | a broken layer, repaired bug by bug |
# | 06 Into a real Llama | the adapter inside all layers; count, save and load it |
# | 07 Instruction data | from sentences to batches, and an honest metric |
# | 08 What matters | small versions of the paper's experiments |
# | 09 A Llama that sees | prompts that carry a picture |
# | 10 One gate, many papers | the same gate in the papers before and after |
# | 11 Fine-tune a Llama on a GPU | the training; the task above, solved |
#
# ## What you have
#
# You saw the task, the idea, the promises and the letters, and your first exercise is checked. Next
# comes **lesson 01**: the shapes of attention, without a single `view` or `transpose`.
#
# Three questions to think about:
#
# <details><summary>Why does the gate start at 0, and not at 1?</summary>
#
# The prompts start as random numbers. With an open gate every adapted layer would add noise to a
# model that works. With a closed gate the first step of training starts from the Llama as it was.
# Lesson 04 measures the difference.
#
# </details>
# <details><summary>Two solved examples in the prompt cost many tokens. What do 10 soft prompts cost?</summary>
#
# No token of the text: they stand beside the tokens, as keys and values in the attention. Each
# token looks at 10 more rows per layer, whatever the task.
#
# </details>
# <details><summary>Two tasks, one Llama: what has to be stored?</summary>
#
# The Llama once, and an adapter for each task. For our Llama an adapter is 173,070 numbers, 0.7 MB
# in float32.
#
# </details>
