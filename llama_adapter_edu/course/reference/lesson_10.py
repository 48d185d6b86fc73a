"""Solutions of lesson 10: what a failed check falls back to.

Generated from solutions/10_finetune_on_a_gpu.py by tools/build.py; edit that file, not this one.
"""
# ruff: noqa
# fmt: off

EXERCISES = {'10.1': 'real_learning_rate, learning_rate_factor', '10.2': 'accumulate', '10.3': 'update', '10.4': 'save_run, load_run'}
STUBS = {'10.1': '11c76b2e0bc6', '10.2': 'a250b4a8a1ac', '10.3': 'cca67e888dd1', '10.4': 'e677068c04ed'}
GIVEN = ('_', 'accelerator', 'adapter', 'after', 'answer', 'ax', 'base', 'before', 'chat', 'colour', 'commands', 'conditions', 'count', 'counts', 'dtype', 'epoch', 'expert', 'folder', 'forget_at', 'four_rows', 'gates', 'gradient', 'history', 'ids', 'key', 'learnt', 'left', 'lengths', 'llama', 'llama_7b', 'logits', 'loss', 'losses', 'marker', 'mean', 'means', 'megabytes', 'memory', 'messages', 'method', 'methods', 'model', 'name', 'one', 'paper', 'paper_adapter', 'part', 'parts', 'path', 'peak', 'profile', 'pulled', 'right', 'row', 'runs', 'said', 'score', 'scores', 'seconds', 'seconds_of_three', 'sentence', 'share', 'shares', 'shown', 'size', 'sizes', 'speed', 'start', 'step', 'steps', 'stored', 'style', 'sums', 'swap', 'test_commands', 'test_messages', 'tokenizer', 'total', 'trainable', 'trained', 'training', 'update')
CELLS = ('f4a19fe4029b', '01571e0baac8', 'd089a466df9c', '34b37012e60c', '72bffd61093e', 'b0020c4be6c4', 'fdbd4f96933c', 'dd30924fd29a', '5c2b382098ba', '6913635bb38c', '188a7231aec0', '1db720c5db82', '9352e9de1fba', '3208209f15e2', '7cd0089cc856', '1edccbc76ab4', '72fd91a6f1a3', '6ac570e4ff7d', 'cfb8653ed999', '20355abdd983', 'd2fe826ea4c3', '38ddfdc70abe', 'a7e463a388bf')
CHECKS = {'10.1': '@check("10.1", "real_learning_rate", "learning_rate_factor")\ndef _():\n    mistakes = {\n        "this is the trap: multiply by the batch, divide by 256": 9e-3,\n        "it is upside down: a larger batch has the larger rate": 9e-3 * 256 / 64,\n    }\n    assert_close(real_learning_rate(9e-3, 64), 0.00225, mistakes=mistakes, what="for 64 rows")\n    assert_close(real_learning_rate(9e-3, 32), 0.001125, what="for 32 rows")\n\n    first = learning_rate_factor(0, steps=24, warmup_steps=4)\n    assert first != 0, "the first step learns nothing: its share is 0, let it be 1/5"\n    warm_up = torch.tensor([learning_rate_factor(step, 24, 4) for step in range(5)])\n    ends_early = torch.tensor([0.25, 0.5, 0.75, 1.0, 1.0])\n    late = torch.tensor([0.2, 0.4, 0.6, 0.8, 0.5 * (1 + cos(pi * 4 / 24))])\n    mistakes = {\n        "the last warm-up step has the full rate already: divide by 5": ends_early,\n        "the cosine starts at the end of the warm-up, not at step 0": late,\n    }\n    right = torch.tensor([0.2, 0.4, 0.6, 0.8, 1.0])\n    assert_close(warm_up, right, mistakes=mistakes, what="the shares of a warm-up of 4 steps")\n    falling = [learning_rate_factor(step, 24, 4) for step in (4, 9, 14, 19, 24)]\n    straight = [1.0, 0.75, 0.5, 0.25, 0.0]\n    mistakes = {\n        "it falls in a straight line: take half a cosine": torch.tensor(straight),\n    }\n    right = torch.tensor([1.0, (2 + 2**0.5) / 4, 0.5, (2 - 2**0.5) / 4, 0.0])\n    assert_close(torch.tensor(falling), right, mistakes=mistakes, what="after the warm-up")\n    assert learning_rate_factor(0, steps=5, warmup_steps=0) == 1, "without warm-up it starts at 1"', '10.2': '@check("10.2", "accumulate")\ndef _():\n    model, parts = small_llama(), [small_batch(1, 2), small_batch(6), small_batch(3, 5)]\n    sums, counts = zip(*(answer_loss_sum(model, part) for part in parts), strict=True)\n    mean = sum(sums) / sum(counts)\n    mean.backward()\n    gradient = model.model.norm.weight.grad.clone()\n    model.zero_grad()\n\n    loss = accumulate(model, parts)\n    assert isinstance(loss, float), "return a number: loss.item(), not a tensor that keeps memory"\n    mean_of_means = sum(s / c for s, c in zip(sums, counts, strict=True)) / 3\n    mistakes = {\n        "this is a mean of means: tokens of short answers weigh more": mean_of_means.item(),\n        "the means are added up, not averaged": 3 * mean_of_means.item(),\n        "these are sums: divide by the tokens of all micro-batches": sum(sums).item(),\n        "this is the loss of the last micro-batch alone": (sums[2] / sum(counts)).item(),\n    }\n    assert_close(loss, mean.item(), tol=1e-4, mistakes=mistakes, what="the loss")\n    mine = model.model.norm.weight.grad\n    assert mine is not None, "no gradient arrived: call backward, and leave it in .grad"\n    mistakes = {\n        "all micro-batches went backward twice or more": 2 * gradient,\n        "the gradients are those of a sum": gradient * sum(counts),\n    }\n    assert_close(mine, gradient, tol=1e-5, mistakes=mistakes, what="the gradients")\n\n    model.zero_grad()\n    scaled = accumulate(model, parts, scale=512.0)\n    mistakes = {"return the loss itself; only the gradients are scaled": 512 * mean.item()}\n    assert_close(scaled, mean.item(), tol=1e-4, mistakes=mistakes, what="with scale=512, the loss")\n    mistakes = {"`scale` is ignored": gradient}\n    mine = model.model.norm.weight.grad\n    assert_close(mine, 512 * gradient, tol=1e-2, mistakes=mistakes, what="with scale=512, they")', '10.3': '@check("10.3", "update")\ndef _():\n    def after_update(gradient: list[float], limit: float, scale: float) -> tuple:\n        """A parameter of [1, 1, 1] after an update with SGD at rate 1, and what else there is."""\n        parameter, unused = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(1))\n        parameter.grad = torch.tensor(gradient)\n        optimizer = torch.optim.SGD([parameter, unused], lr=1.0)\n        return update(optimizer, limit, scale), parameter.detach(), parameter.grad\n\n    stepped, value, left = after_update([1024.0, 0.0, 2048.0], limit=10.0, scale=1024.0)\n    direction = torch.tensor([1.0, 0.0, 2.0]) / 5**0.5  # clipped to 10, the norm is 10\n    mistakes = {\n        "the gradients are still scaled: divide them by `scale`": 1 - 10 * direction,\n        "clip after unscaling: a scaled norm is far above the limit": 1 - 10 / 1024 * direction,\n    }\n    right = torch.tensor([0.0, 1.0, -1.0])\n    assert_close(value, right, tol=1e-4, mistakes=mistakes, what="the parameter")\n    assert stepped is True, f"a step was taken: return True, got {stepped!r}"\n    said = "the gradients are still there: the next step would add to them"\n    assert left is None or not left.any(), said\n\n    _, value, _ = after_update([3.0, 0.0, 4.0], limit=1.0, scale=1.0)\n    mistakes = {"nothing is clipped: the norm is 5, the limit 1": torch.tensor([-2.0, 1.0, -3.0])}\n    right = torch.tensor([0.4, 1.0, 0.2])\n    assert_close(value, right, tol=1e-4, mistakes=mistakes, what="clipped to norm 1, it")\n\n    for bad in (float("inf"), float("nan")):\n        stepped, value, left = after_update([1.0, bad, 1.0], limit=1.0, scale=2.0)\n        said = f"a gradient is {bad} and the optimiser stepped: the parameter is {value.tolist()}"\n        assert torch.equal(value, torch.ones(3)), said\n        assert stepped is False, f"the step was skipped: return False, got {stepped!r}"\n        said = f"a gradient of {bad} is still there after the skipped step, and spoils the next one"\n        assert left is None or bool((left == 0).all()), said', '10.4': '@check("10.4", "save_run", "load_run")\ndef _():\n    folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)\n    path = Path(folder.name, "run.pt")\n\n    def small_run(first: int, last: int, resumed: bool = False) -> tuple:\n        """Steps `first` to `last` - 1 on the same rows, from the file at `path` if resumed."""\n        model = small_llama()\n        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)\n        step = load_run(path, model, optimizer) if resumed else 0\n        torch.manual_seed(1)\n        batch = small_batch(4, 6)\n        for _ in range(first, last):\n            accumulate(model, [batch])\n            update(optimizer, 1.0)\n        return model, optimizer, step\n\n    at_once = small_run(0, 6)[0].model.norm.weight.detach()\n    model, optimizer, _ = small_run(0, 3)\n    save_run(path, model, optimizer, 3)\n    assert path.is_file(), f"there is no file at the path that was given: {path.name}"\n    size = path.stat().st_size\n    assert size < 12_000, f"the file has {size:,} bytes: the frozen base is in it"\n    resumed, _, step = small_run(3, 6, resumed=True)\n    assert step == 3, f"3 steps were done when it was saved; load_run returned {step!r}"\n    untrained = small_run(3, 6)[0].model.norm.weight.detach()\n    said = "the run went on from the untrained model: its parameters were not put back"\n    assert not torch.equal(resumed.model.norm.weight, untrained), said\n    said = "3 steps, loading and 3 more steps end elsewhere than 6 steps: is AdamW\'s state missing?"\n    assert torch.equal(resumed.model.norm.weight, at_once), said\n\n    def power_fails(state: object, file: object, *args: object, **options: object) -> None:\n        """A torch.save that writes a part and dies."""\n        file.write(b"PK") if hasattr(file, "write") else Path(file).write_bytes(b"PK")\n        raise OSError("the power failed")\n\n    with patch("torch.save", power_fails), suppress(OSError):\n        save_run(path, model, optimizer, 4)\n    try:\n        step = small_run(3, 3, resumed=True)[2]\n    except Exception as error:\n        raise AssertionError(\n            "the power failed while a second save was writing, and the first file is gone: write "\n            "beside it, then os.replace"\n        ) from error\n    assert step == 3, f"after a save that failed, the earlier file should say 3, not {step!r}"\n\n    class Trap:\n        """Runs code when it is unpickled."""\n\n        def __reduce__(self) -> tuple:\n            return exec, ("import os; os.environ[\'TRAP\'] = \'sprung\'",)\n\n    torch.save({"trained": Trap(), "optimizer": Trap(), "step": Trap()}, path)\n    with suppress(Exception):  # refusing the file is right\n        small_run(3, 3, resumed=True)\n    said = "code inside the file was run by load_run: torch.load(path, weights_only=True)"\n    assert os.environ.pop("TRAP", None) is None, said\n    folder.cleanup()'}

import os
from collections.abc import Sequence
from pathlib import Path
import torch
from llama_adapter_edu.data.encoding import IGNORE_INDEX
from llama_adapter_edu.training.loss import answer_loss_sum
from torch import nn
from llama_adapter_edu.training.config import real_learning_rate, learning_rate_factor


def accumulate(
    model: nn.Module, micro_batches: Sequence[dict[str, torch.Tensor]], scale: float = 1.0
) -> float:
    """Forward and backward over a step's micro-batches; gradients add up in the parameters.

    Each micro-batch has `input_ids`, `attention_mask` and `labels`, all (b s). Returns the mean
    loss over the labelled tokens of all micro-batches. The gradients are `scale` times its own.
    """
    n_tokens = sum((batch["labels"] != IGNORE_INDEX).sum() for batch in micro_batches)
    total = 0.0
    for batch in micro_batches:
        loss_sum, _ = answer_loss_sum(model, batch)
        loss = loss_sum / n_tokens
        (loss * scale).backward()
        total += loss.item()
    return total


def update(optimizer: torch.optim.Optimizer, max_grad_norm: float, scale: float = 1.0) -> bool:
    """Step with the gradients divided by `scale` and clipped; skip if one is not finite.

    Returns whether the optimiser stepped. All gradients are cleared.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    parameters = [parameter for parameter in parameters if parameter.grad is not None]
    for parameter in parameters:
        parameter.grad /= scale
    norm = nn.utils.clip_grad_norm_(parameters, max_grad_norm)
    finite = bool(norm.isfinite())
    if finite:
        optimizer.step()
    optimizer.zero_grad()
    return finite


def save_run(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Write what trains, the optimiser's state and the steps done; a whole file or none."""
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    state = {"trained": trained, "optimizer": optimizer.state_dict(), "step": step}
    torch.save(state, path.with_suffix(".unfinished"))
    os.replace(path.with_suffix(".unfinished"), path)


def load_run(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Put a saved run into model and optimiser, in place. Returns the steps done."""
    state = torch.load(path, weights_only=True)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(state["trained"][name])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"]
