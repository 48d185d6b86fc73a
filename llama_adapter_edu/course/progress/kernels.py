"""What nbval's kernel lacks: its death is noticed, and the cells below go on in a new one."""

import queue
import re
import time

import pytest

from llama_adapter_edu.course.progress import verdicts

ENDS = re.compile(r"\b(?:exit|quit|_exit|abort|kill)\s*\(")
DIES_WITHIN = 2.0  # seconds that a kernel lives on after exit()


def revive(item: pytest.Item) -> None:
    """After a cell that ended the kernel: a new one, in which the other cells above run again."""
    kernel = item.parent.kernel
    enders = [before for before in item.earlier if ENDS.search(before.cell.source)]
    ender = next((before for before in enders if not hasattr(before, "ended")), None)
    end = time.monotonic() + (DIES_WITHIN if ender else 0)
    while ender and kernel.is_alive() and time.monotonic() < end:
        time.sleep(0.05)
    if kernel.is_alive():
        return
    guilty = ender or item.earlier[-1]
    guilty.ended = True
    check = getattr(guilty, "checked_by", item if item.checks else None)
    if check:
        check.cause = verdicts.DEAD
    kernel.restart()
    kernel.kc.wait_for_ready(timeout=120)
    for before in item.earlier:
        if not hasattr(before, "ended"):
            kernel.await_reply(kernel.execute_cell_input(before.cell.source, False), 300)


def notice_death(kernel) -> None:
    """nbval waits the whole cell timeout for a kernel that has died; look every second instead."""
    wait = kernel.await_reply

    def await_reply(msg_id: str, timeout: float) -> None:
        end = time.monotonic() + timeout
        while True:
            try:
                return wait(msg_id, timeout=max(0.01, min(1, end - time.monotonic())))
            except queue.Empty:
                if not kernel.is_alive():
                    raise RuntimeError(verdicts.DEAD) from None
                if time.monotonic() >= end:
                    raise

    if not hasattr(kernel, "notices_death"):
        kernel.await_reply, kernel.notices_death = await_reply, True
