"""Tools of the fuzz tests: broken input, a guard around the call, what a call may answer."""

import os
import sys
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

from hypothesis import strategies as st

CASES = Counter()  # how many cases of each kind this run has tried
LONGEST_MESSAGE = 2000
SIZES = (0, 1, 2**8, 2**16, 2**31 - 1, 2**32, 2**63 - 1, 2**64 - 1)


class Broken(AssertionError):
    """A call did with bad input what no call may do."""


def settle(kind: str, call, *errors, about: str = "", printable: bool = True):
    """Run one case. Its result, or None if it was refused with one of `errors`, in good words.

    Good words are some, not too many, name what they are `about`, and, where they quote a file, are
    printable: a terminal must not be told what to do by a file.
    """
    CASES[kind] += 1
    try:
        return call()
    except errors as error:
        text = str(error)
        if len(text.split()) < 5 or about not in text:
            raise Broken(f"{error!r} does not say what is wrong with {about}") from error
        if len(text) > LONGEST_MESSAGE:
            raise Broken(f"a message of {len(text)} characters: {text[:300]!r}...") from error
        strange = {char for char in text if not char.isprintable() and char != "\n"}
        if printable and strange:
            raise Broken(f"{strange} in the message {text!r}") from error
        return None


# What no reading of a file may do, by the names of Python's audit events.
FORBIDDEN = {"os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen"}
FORBIDDEN |= {"pickle.find_class", "socket.connect", "os.symlink", "os.link"}
CHANGING = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "shutil.rmtree"}
_watched: list[Path] = []  # the folder where files may change, while a guard is up
_seen: list[str] = []


def _audit(event: str, args: tuple) -> None:
    if not _watched:
        return
    if event in FORBIDDEN:
        _seen.append(f"{event} {args!r:.200}")
    writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
    if (writes or event in CHANGING) and isinstance(args[0], (str, bytes, os.PathLike)):
        path = Path(os.path.realpath(os.fsdecode(args[0])))
        if not path.is_relative_to(_watched[-1]) and path != Path(os.devnull):
            _seen.append(f"{event} {path}")


_hooked: list[bool] = []


@contextmanager
def guard(folder: Path):
    """Fails if inside something is run, sent, unpickled by name, or changed outside of `folder`."""
    if not _hooked:  # a hook of Python's cannot be taken out again
        sys.addaudithook(_audit)
        _hooked.append(True)
    _seen.clear()
    _watched.append(Path(os.path.realpath(folder)))
    try:
        yield
    finally:
        _watched.pop()
    if _seen:
        raise Broken(f"the call did more than read: {_seen}")


def state_of(model) -> tuple:
    """All of a model that loading an adapter may change. In-place changes count up a version."""
    parameters = [(n, p.requires_grad, p._version) for n, p in model.named_parameters()]
    modules = [name for name, _ in model.named_modules()]
    hooks = [len(module._forward_pre_hooks) for module in model.modules()]
    adapters = getattr(model, "adapter_state", None)
    known = (dict(adapters.configs), adapters.active) if adapters else None
    return parameters, modules, hooks, known, model.config._attn_implementation


@st.composite
def mutated(draw, seeds: list[bytes]) -> bytes:
    """One of the seeds, with up to four faults as disks, networks and attackers make them."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 4))):
        near_start = draw(st.booleans())
        at = draw(st.integers(0, min(len(data), 400) if near_start else len(data)))
        fault = draw(st.sampled_from(["flip", "cut", "drop", "repeat", "insert", "number", "zero"]))
        length = draw(st.integers(1, 64))
        if fault == "flip" and at < len(data):
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif fault == "cut":
            del data[at:]
        elif fault == "drop":
            del data[at : at + length]
        elif fault == "repeat":
            data[at:at] = data[at : at + length] * draw(st.integers(1, 50))
        elif fault == "insert":
            data[at:at] = draw(st.binary(max_size=64))
        elif fault == "number":
            width = draw(st.sampled_from([2, 4, 8]))
            number = draw(st.sampled_from(SIZES)) % 2 ** (8 * width)
            data[at : at + width] = number.to_bytes(width, "little")
        else:
            data[at : at + length] = bytes(length)
    return bytes(data)


STRANGE = ["../../outside", "/etc/passwd", "C:\\x", "~/x", "\u202e", "\x1b[2J", "\ud800"]
STRANGE += ["x" * 5000, "${HOME}", "`id`", "; rm -rf /", "<script>", "__class__", "keys"]
TEXTS = st.one_of(
    st.text(max_size=40),
    st.sampled_from(STRANGE),
)
NUMBERS = st.one_of(
    st.integers(-3, 12), st.sampled_from([2**31, 2**63, -(2**70), 10**30]), st.floats()
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=6,
)


@st.composite
def edited(draw, seeds: list[dict]) -> dict:
    """One of the settings, with up to three of its values replaced, taken away or added."""
    settings = dict(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 3))):
        key = draw(st.one_of(st.sampled_from(sorted(settings) or ["x"]), TEXTS))
        if draw(st.integers(0, 4)) == 0:
            settings.pop(key, None)
        else:
            settings[key] = draw(JSON)
    return settings
