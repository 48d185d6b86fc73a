"""What is compared: one default setting, and studies that change one thing of it at a time."""

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Cell:
    """All settings of one run but its seed. The defaults are what every study starts from."""

    adapter_layers: int = 30  # 0: the bare Llama, nothing is trained
    adapter_len: int = 10
    gate: str = "per_head"
    gate_activation: str = "tanh"
    init_std: float = 1.0
    gate_start: str = "zero"
    softmax: str = "two"
    dtype: str = "float32"
    learning_rate: float = 3e-2
    rooms: int = 10  # different rooms in the training rows
    rows: int = 400
    steps: int = 150
    batch_size: int = 16

    def changes(self) -> dict:
        """The settings that differ from the defaults."""
        default = asdict(Cell())
        return {name: value for name, value in asdict(self).items() if value != default[name]}


# What a 2-core CPU trains in half a minute: the budget of the lesson's own run.
SHORT = {"steps": 20, "batch_size": 8}
# 9e-3 per 256 rows (the authors' base rate) is 5.625e-4 at the 16 rows of a step here.
RATES = (9e-3 * 16 / 256, 3e-3, 9e-3, 3e-2, 1e-1)

# The order is the order of importance: a run that is cut off has the paper's tables first.
STUDIES: dict[str, list[Cell]] = {
    "layers": [Cell(adapter_layers=n) for n in (0, 5, 10, 20, 30)],
    "start": [
        Cell(gate_start=start, softmax=softmax)
        for softmax in ("two", "joint")
        for start in ("zero", "random", "open")
    ],
    "training_length": [Cell(steps=n) for n in (800, 400, 150, 75)],
    "learning_rate": [Cell(learning_rate=rate) for rate in RATES],
    "bfloat16": [Cell(learning_rate=rate, dtype="bfloat16") for rate in RATES],
    "layers_short": [Cell(adapter_layers=n, **SHORT) for n in (5, 10, 20, 30)],
    "adapter_len": [Cell(adapter_len=n) for n in (1, 2, 5, 10, 20, 50)],
    "gate": [
        Cell(gate=gate, gate_activation=activation)
        for gate in ("per_head", "per_layer")
        for activation in ("tanh", "identity")
    ],
    "init_std": [Cell(init_std=std) for std in (0.02, 0.1, 0.3, 1.0, 3.0)],
    "rooms": [Cell(rooms=n) for n in (10, 40, 160)],
    # Table 5 again with prompts so small that an open gate hardly disturbs the Llama.
    "quiet_start": [
        Cell(gate_start=start, softmax=softmax, init_std=0.02)
        for softmax in ("two", "joint")
        for start in ("zero", "random", "open")
    ],
}

TINY_STUDIES: dict[str, list[Cell]] = {
    "layers": [Cell(adapter_layers=n, steps=2, batch_size=2, rows=8) for n in (0, 2)]
}


def grid(studies: dict[str, list[Cell]], n_seeds: int) -> list[tuple[Cell, int]]:
    """Every different cell once for each seed, seed by seed: a cut-off run compares all cells."""
    cells = list(dict.fromkeys(cell for study in studies.values() for cell in study))
    return [
        (cell, seed)
        for seed in range(n_seeds)
        for cell in cells
        if cell.adapter_layers > 0 or seed == 0  # the bare Llama is the same for every seed
    ]
