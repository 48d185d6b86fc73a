"""Fine-tuning on instructions: the loop.

    rows of `encode_dataset` -> batches of similar length -> gradients -> AdamW -> next step
                                                                 │
                                          every few steps: a checkpoint in the resume folder

accelerate finds devices and processes, and takes care of mixed precision. `config.py` holds
settings and schedule, `rows.py` the data, `loss.py` the loss, `step.py` computes the gradients,
`processes.py` adds them up, `resume.py` and `state.py` keep the checkpoints.
"""

import os
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import asdict
from math import isfinite
from typing import Any

import torch
from accelerate import Accelerator
from jaxtyping import Int
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from llama_adapter_edu.adapters.inspect import gate_openings
from llama_adapter_edu.data.token_rows import Rows
from llama_adapter_edu.training import resume
from llama_adapter_edu.training.compiled import compiled_layers, fused_layers
from llama_adapter_edu.training.config import (
    TrainingConfig,
    learning_rate_factor,
    make_optimizer,
    training_batches,
)
from llama_adapter_edu.training.cuda_graphs import GraphedGradients, check_possible
from llama_adapter_edu.training.interrupts import caught_interrupts
from llama_adapter_edu.training.loss import cross_entropy_sum
from llama_adapter_edu.training.processes import (
    check_accelerator,
    check_same,
    sum_over_processes,
    trains_there,
)
from llama_adapter_edu.training.shared_start import SharedStart
from llama_adapter_edu.training.state import History, Trained, about_model
from llama_adapter_edu.training.step import Gradients, check_gradients


def finetune(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Iterable[Mapping[str, Any]],
    config: TrainingConfig | None = None,
    *,
    accelerator: Accelerator | None = None,
    progress: bool = True,
    resume_folder: str | os.PathLike | None = None,
    save_every: int = 20,
    cuda_graphs: bool = False,
    compile_layers: bool = False,
    fused: bool = False,
    document_ids: Int[Tensor, "1 t"] | None = None,
    share_start: bool = False,
) -> History:
    """Train what is trainable in `model`, in place.

    With several processes (`accelerate launch`), each works on its share of a step's rows. All
    begin with what trains in the main one. The base may be whole in each, spread over them
    (`load_llama(..., shard=True)`), or spread over the GPUs of one process by a device map.

    The caller's random numbers go on as if nothing had happened.

    Args:
        dataset: rows of `encode_dataset`; or any rows with `input_ids` and `labels`, and with
            `position_ids` if they are packed: a Dataset, a list, or a stream, as an
            IterableDataset, of which as many rows as the steps need are read first.
        accelerator: devices, processes and mixed precision. If None, `Accelerator()`: it takes over
            the precision of an earlier one in this process, as a trainer's, if there was one.
        resume_folder: keeps a checkpoint every `save_every` steps and at the end; the main process
            reads and writes it. A run that was stopped, in whatever way, goes on from the last one
            when it is called again with the same model, data and settings, and ends as if it had
            never stopped. Ctrl-C waits for the step to end, saves, and raises KeyboardInterrupt.
            `torchrun --max-restarts` starts a run again whose process died; set the environment
            variable TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1, or it may wait for the dead process.
        cuda_graphs: on one NVIDIA GPU, several times faster for a small model, with the same losses
            (see `cuda_graphs.py`). Not with mixed precision, micro-batches or packed rows.
        compile_layers: torch.compile the decoder's layers and the loss. Faster steps, with or
            without cuda_graphs, after a wait for the compiler: worth it for long runs.
        fused: on NVIDIA GPUs, the base's small operations and the loss in fewer kernels, ready at
            once (see `fuse_base`). Not with compile_layers, which fuses by itself.
        document_ids: learn from the base model that reads this document before each row, in place
            of the rows' own answers (see `distillation.py`). Not with cuda_graphs or packed rows.
        share_start: compute the tokens with which all rows begin, as a system prompt, once in a
            step and not in every row, with the same losses. It pays where rows are short (see
            `shared_start.py`). Not with cuda_graphs, document_ids or packed rows. ValueError if
            the model cannot do this.

    Returns:
        the loss and, for a model with adaption prompts, the gates' openings after each step.

    Raises:
        ValueError: nothing trains or learns, rows are not what training can use, a step has no
            labels, processes have different data, or an argument is out of range.
        ResumeError: the folder holds another run or a broken checkpoint, or a run works in it.
        OSError: a checkpoint cannot be written. Earlier ones are whole.
        FloatingPointError: loss or gradients became NaN or infinite. The model is as it was after
            the last good step, and so is the newest checkpoint.
        torch.OutOfMemoryError: not even one row at a time fits.
    """
    config, accelerator = config or TrainingConfig(), accelerator or Accelerator()
    if save_every < 1:
        raise ValueError(f"save_every must be 1 or more, got {save_every!r}.")
    check_accelerator(accelerator)
    n_tokens = getattr(model.get_input_embeddings(), "num_embeddings", None)
    wanted = config.steps * config.batch_size
    # A graph has places of its own, which are filled from the CPU.
    device = torch.device("cpu") if cuda_graphs else accelerator.device
    rows = Rows(dataset, tokenizer.pad_token_id, device, wanted, n_tokens)
    if cuda_graphs:
        check_possible(accelerator, config, rows.packed)
    if fused and compile_layers:
        raise ValueError("compiled layers are fused by the compiler: leave out fused.")
    if share_start and (cuda_graphs or document_ids is not None):
        raise ValueError("share_start: leave out cuda_graphs and document_ids.")
    about = {"data": rows.fingerprint, **asdict(config)}
    if document_ids is not None:
        if cuda_graphs or rows.packed:
            raise ValueError("document_ids: leave out cuda_graphs, and do not pack the rows.")
        about["document"] = str(document_ids.tolist())
    check_same(about, accelerator)
    del about["micro_batch_size"]  # it may change from one part of a run to the next
    trained = Trained(
        model,
        make_optimizer(model, config),
        accelerator.scaler or torch.amp.GradScaler(enabled=False),
    )
    if resume_folder is not None:
        about |= about_model(model, accelerator)

    faster = fused_layers if fused else lambda _: nullcontext(cross_entropy_sum)
    faster = compiled_layers if compile_layers else faster
    with (
        resume.resume_folder(resume_folder, about, accelerator) as saved,
        trains_there(model, accelerator),
        caught_interrupts(resume_folder is not None) as interrupted,
        faster(model) as loss_sum,
    ):
        history = saved.load(trained)
        # Flash attention keeps packed examples apart only in a batch of one row.
        one_by_one = rows.packed and "flash" in str(model.config._attn_implementation)
        size = 1 if one_by_one else config.micro_batch_size
        taken = SharedStart(rows, model) if share_start else rows
        gradients = Gradients(model, taken, accelerator, size, loss_sum, document_ids)
        if cuda_graphs:
            graphs = GraphedGradients(model, tokenizer.pad_token_id, loss_sum)
            gradients = lambda numbers: graphs(rows.batch(numbers), rows.n_labelled(numbers))  # noqa: E731
        batches = training_batches(rows.lengths, config)
        done, hidden = len(history.losses), not (progress and accelerator.is_main_process)
        bar = {"initial": done, "total": config.steps, "unit": "step", "disable": hidden}
        steps = tqdm(range(done, config.steps), "fine-tuning", **bar)
        for step in steps:
            # Drawn anew for each step: a resumed run needs no memory of earlier random numbers.
            torch.manual_seed(config.seed + step + accelerator.process_index)
            part, stop = gradients(batches[step]), interrupted()
            try:
                loss, stop = _update(trained, part, stop, step, config, accelerator)
            except FloatingPointError as error:
                raise FloatingPointError(
                    f"{error} at step {step}, in the rows {batches[step]}. Look at these rows, "
                    f"lower learning_rate (now {config.learning_rate}), or load the base in "
                    f"float32 or bfloat16. {saved.save(trained, history)}".rstrip()
                ) from None
            history.losses.append(loss)
            history.gates.append(gate_openings(model))
            steps.set_postfix(loss=f"{loss:.3f}")
            if stop or (step + 1) % save_every == 0 or step + 1 == config.steps:
                where = saved.save(trained, history)
            if stop:
                raise KeyboardInterrupt(
                    f"stopped after step {step + 1} of {config.steps}. {where} "
                    "Run the same lines again to go on."
                )
    return history


def _update(
    trained: Trained,
    part_of_loss: Tensor,
    stop: bool,
    step: int,
    config: TrainingConfig,
    accelerator: Accelerator,
) -> tuple[float, bool]:
    """Sum gradients over all processes and take AdamW's step, unless they are not finite.

    Returns:
        the mean loss over the labelled tokens of all processes, and whether one of them must stop.
    """
    model, optimizer, scaler = trained
    check_gradients(model)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    numbers = torch.stack([part_of_loss, torch.full_like(part_of_loss, stop)])
    loss, stops = sum_over_processes(parameters, numbers, accelerator).tolist()
    scaler.unscale_(optimizer)
    norm = clip_grad_norm_(parameters, config.max_grad_norm).item()
    # A gradient scaler looks for infinite gradients itself, and skips the step.
    if not isfinite(loss) or not (scaler.is_enabled() or isfinite(norm)):
        optimizer.zero_grad()
        what = f"the loss became {loss}" if not isfinite(loss) else f"gradients became {norm}"
        raise FloatingPointError(what)
    if step == 0 and norm == 0:
        raise ValueError(
            "all gradients are exactly zero, so nothing would be learnt: what trains does not move "
            "the loss. With compile_layers, try without it, or another version of torch."
        )
    for group in optimizer.param_groups:
        factor = learning_rate_factor(step, config.steps, config.warmup_steps)
        group["lr"] = config.learning_rate * factor
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
    return loss, stops > 0
