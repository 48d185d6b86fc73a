"""What went wrong in words, for an error that Python, torch or einops raised in an answer.

The sentence names the statement, says what does not fit, and lists the values in it, with the
letters of the exercise's signature: "`return x + y` stops: an axis of size 5 meets an axis of
size 4. There, x is a tensor (b=2, s=5), y is a tensor (b=2, t=4)".
"""

import inspect
import linecache
import re
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from types import FrameType, TracebackType

import torch

import llama_adapter_edu
from llama_adapter_edu.course.checks import scope, source
from llama_adapter_edu.course.checks.shapes import described

PROJECT = str(Path(llama_adapter_edu.__file__).parent)
LIBRARIES = (PROJECT, *map(sysconfig.get_path, ("stdlib", "purelib", "platlib")))
LONGEST = 110  # characters of a quoted statement

ADDITION = "an axis of size {} meets an axis of size {}: they must be equal, or one of them 1"
PRODUCT = "in a product of matrices the inner sizes must be equal; here they are {1} and {2}"
CUT = "there is no gradient to follow: detach, no_grad, .item() or .data cut it on the way"
WORDS = {  # what libraries say: what it means
    r"size of tensor a \((\d+)\) must match the size of tensor b \((\d+)\)": ADDITION,
    r"mat1 and mat2 shapes cannot be multiplied \((\d+)x(\d+) and (\d+)x(\d+)\)": PRODUCT,
    r"shape '\[(.*)\]' is invalid for input of size (\d+)": (
        "{1} numbers do not fit into the shape ({0})"
    ),
    r"subscript \w+ has size (\d+) for operand \d+ which does not broadcast with previously seen "
    r"size (\d+)": "one letter of the pattern has size {1} in one tensor and size {0} in another",
    r"number of subscripts .*\((\d+)\) does not match the number of dimensions \((\d+)\)": (
        "the pattern names {} axes, the tensor has {}"
    ),
    r"Expected size for first two dimensions of batch2 tensor to be: \[(.*)\] but got: \[(.*)\]": (
        "the two tensors do not fit: the second one should begin with the sizes ({}), not ({})"
    ),
    r"Sizes of tensors must match except in dimension (\d+)\. Expected size (\d+) but got size "
    r"(\d+)": "torch.cat along axis {} needs all other sizes equal; here {} meets {}",
    r"stack expects each tensor to be equal size, but got \[(.*?)\] at entry 0 and \[(.*?)\]": (
        "torch.stack needs tensors of one shape; here ({}) meets ({})"
    ),
    r"view size is not compatible": (
        "view cannot join axes that do not lie side by side: use rearrange"
    ),
    r"Dimension out of range \(expected to be in range of \[.*\], but got (-?\d+)\)": (
        "there is no axis {}"
    ),
    r"index (-?\d+) is out of bounds for dimension (\d+) with size (\d+)": (
        "there is no index {} on axis {}, whose size is {}"
    ),
    r"too many indices for tensor of dimension (\d+)": "more indices than the tensor's {} axes",
    r"(\w+) index out of range": "the {} has fewer entries",
    r"does not require grad": CUT,
    r"Can't call numpy\(\) on Tensor that requires grad": (
        "numpy knows no gradients: stay with torch, or the gradient is cut"
    ),
    r"leaf Variable that requires grad .*in-place": (
        "a parameter is changed in place; compute a new tensor instead"
    ),
    r"Boolean value of Tensor with more than one value": (
        "a condition needs one true or false, and gets a tensor of many: use torch.where, "
        "masked_fill, .all() or .any()"
    ),
    r"expected scalar type (\w+) but found (\w+)|same dtype, but got (\w+) and (\w+)": (
        "two dtypes meet: bring both tensors to one with .to(...)"
    ),
    # einops
    r"Could not infer sizes for \{(.*)\}": (
        "the pattern leaves {} open: give one of these sizes as a keyword, such as d=4"
    ),
    r"Identifiers only on one side of expression \(should be on both\): \{(.*)\}": (
        "the pattern has {} on one side only; rearrange keeps every axis"
    ),
    r"Wrong shape: expected (\d+) dims. Received (\d+)-dim": (
        "the pattern names {} axes, the tensor has {}"
    ),
    r"[Ss]hape mismatch, (?:can't divide axis of length )?(\d+) (?:!=|in chunks of) (\d+)": (
        "an axis of size {} cannot be what the pattern needs, {}"
    ),
    r"Axis .* is not used in transform|Specify sizes? for new axes": (
        "the sizes given as keywords and the names in the pattern do not fit each other"
    ),
    r"Unexpected identifiers on the left side of (?:repeat|reduce)": (
        "an axis of the left side is missing on the right"
    ),
    r"Unknown axis (\w+) on right side of einsum": "the result has an axis {} that no input has",
    r"Tensor type unknown to einops <class '([\w.]+)'>": (
        "einops is given a {} where a tensor should stand"
    ),
    r"(?:fewer|more) operands were provided than specified": (
        "the commas of the pattern and the number of tensors do not fit each other"
    ),
    r"must be a string, representing the einsum pattern": (
        "the last argument of einsum should be the pattern"
    ),
    # Python
    r"StdinNotImplementedError|reading from stdin": (
        "it waits for somebody to type; take the value as an argument instead of input()"
    ),
    r"(\w+)\(\) missing \d+ required (?:positional |keyword-only )?arguments?: ['\"](\w+)['\"]": (
        "`{}` is called without its argument `{}`"
    ),
    r"(\w+)\(\) got an unexpected keyword argument '(\w+)'": "`{}` knows no keyword `{}`",
    r"(\w+)\(\) takes (?:from )?(.*) positional arguments? but (\d+) (?:was|were) given": (
        "`{}` takes {} arguments, and is given {}"
    ),
    r"(\w+)\(\)(?:: argument .*| received an invalid combination of arguments - got \((.*?)\))": (
        "`{}` cannot work with what it is given ({})"
    ),
    r"(\w+) expected at least (\d+) arguments?, got (\d+)": (
        "`{}` needs {} arguments, and is given {}"
    ),
    r"upper bound and (?:larger bound|lower bound) inconsistent": (
        "arange counts upwards, but its start lies above its end"
    ),
    r"'NoneType'": "something in it is None",
    r"object of type '(\w+)' has no len": "a {} has no length",
    r"'(\w+)' object is not iterable": "a loop cannot go through a {}",
    r"expected Tensor as element \d+ in argument \d+, but got (\w+)": (
        "a {} stands where a tensor is needed"
    ),
    r"expected a non-empty list of Tensors": "the list of tensors to join is empty",
    r"split_sizes to sum exactly to (\d+).* at dimension (-?\d+)": (
        "the sizes of split must add up to {}, the size of axis {}"
    ),
    r"Tensor with (\d+) elements cannot be converted to Scalar": (
        ".item() needs one number, and gets {}"
    ),
    r"Tensors must have same number of dimensions: got (\d+) and (\d+)": (
        "the tensors that are joined need equally many axes; here {} meet {}"
    ),
    r"cannot assign parameters? before Module.__init__": "super().__init__() comes first",
    r"to have the same dtype, but got: (\w+) != (?:c10::)?(\w+)": (
        "two dtypes meet, {} and {}: bring both tensors to one with .to(...)"
    ),
    r"(tuple|list) indices must be integers": "a {} holds several: take one out, as [0]",
    r"not supported between instances of '(\w+)' and '(\w+)'": "a {} cannot be compared with a {}",
    r"before Module.__init__\(\) call": "the first line should be super().__init__()",
    r"to have the same dtype, but got": "two dtypes meet: bring both tensors to one with .to(...)",
    r"(?:local variable|variable) '(\w+)' .*(?:referenced|associated)": (
        "`{}` is used before it has a value"
    ),
    r"name '(\w+)' is not defined": "the name `{}` is not defined: a typo, or a missing import?",
    r"'(\w+)' object is not callable": "what stands before the brackets is of type {}, no function",
    r"has no attribute '(\w+)'": "there is no `.{}`",
    r"KeyError: (.*)": "there is no entry {}",
    r"unsupported operand type\(s\) for (.+): '(\w+)' and '(\w+)'": (
        "`{}` does not work between {} and {}"
    ),
    r"(?:not enough|too many) values to unpack \(expected (\d+)": (
        "{} names on the left, but another number of values on the right"
    ),
    r"cannot unpack non-iterable (\w+)": "the right side is one {}, and cannot be unpacked",
}
SIGNATURE = re.compile(r"\w+\(\) (?:missing|got an unexpected|got multiple|takes)")


def explain(error: BaseException, references: Mapping[str, object]) -> tuple[str, bool]:
    """A sentence about an error in an answer, and whether a library's own words are left in it.

    references: the course's solutions by name; their signatures give the letters of the shapes.
    """
    watched, frames = learners_frames(error.__traceback__)
    words = translated(error)
    said = words or f"{type(error).__name__}: {_last_sentence(error)}"
    if frames:
        frame, line = frames[-1]
        statement = source.statement_at(text_of(frame), line)
        return (
            f"`{_short(statement)}` stops: {said}{_values(frame, statement, references)}",
            not words,
        )
    if watched and SIGNATURE.search(str(error)):
        return f"{said}: leave the first line, with its arguments, as it was given", False
    if "NoneType" in str(error):
        return "the result is None, or has None in it: is a `return` missing?", False
    return f"the result does not have the form that the exercise asks for: {said}", not words


def learners_frames(trace: TracebackType | None) -> tuple[bool, list[tuple[FrameType, int]]]:
    """Whether a traceback passes a call of the answer; (frame, line) below it, outermost first."""
    watched, frames = False, []
    while trace is not None:
        frame, code = trace.tb_frame, trace.tb_frame.f_code
        if code.co_name == scope.WATCHED and code.co_filename == scope.__file__:
            watched, frames = True, []
        elif watched and not code.co_filename.startswith(LIBRARIES):
            frames.append((frame, trace.tb_lineno))
        trace = trace.tb_next
    return watched, frames


def text_of(frame: FrameType) -> str:
    """The source of the cell that a frame runs."""
    return "".join(linecache.getlines(frame.f_code.co_filename))


def translated(error: BaseException) -> str | None:
    """What an error means, in words; None for one that is not in the table."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"
    for pattern, sentence in WORDS.items():
        if found := re.search(pattern, text):
            return sentence.format(*(group or "?" for group in found.groups()))
    return None


def _last_sentence(error: BaseException) -> str:
    """einops says the reason at the end."""
    message = " ".join(str(error).split())
    of_einops = type(error).__module__.startswith("einops")
    return str(error).strip().splitlines()[-1].strip() if of_einops else message


def _short(statement: str) -> str:
    return statement if len(statement) <= LONGEST else statement[: LONGEST - 4] + " ..."


def _values(frame: FrameType, statement: str, references: Mapping[str, object]) -> str:
    """ ". There, x is a tensor (b=2, s=5)" for the variables in a statement that fails."""
    letters = _letters(references.get(frame.f_code.co_name))
    names = dict.fromkeys(re.findall(r"(?<![\w.\"'])[A-Za-z_]\w*", statement))
    known = {name: frame.f_locals[name] for name in names if name in frame.f_locals}
    shown = [
        f"{name} is {described(value, letters.get(name))}"
        for name, value in known.items()
        if value is None or isinstance(value, torch.Tensor | int | float | str | list | tuple)
    ]
    return f". There, {', '.join(shown)}" if shown else ""


def _letters(reference: object) -> dict[str, list[str]]:
    """{argument: the letters of its axes} from types such as Float[Tensor, "b h s d"]."""
    function = getattr(reference, "forward", reference)
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return {}
    axes = {name: getattr(p.annotation, "dim_str", "") for name, p in parameters.items()}
    return {name: text.split() for name, text in axes.items() if text}
