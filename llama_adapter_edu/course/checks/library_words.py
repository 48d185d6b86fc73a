"""What the error messages of Python, torch and einops mean: {pattern: sentence}."""

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
