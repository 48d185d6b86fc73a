"""Fine-tuning: the loop, what a step does, and what a stopped run goes on from.

`loop.py` is the way in, `config.py` has the settings, `step.py` the gradients of one step.
"""

from .config import TrainingConfig as TrainingConfig
from .config import real_learning_rate as real_learning_rate
from .loop import finetune as finetune
from .state import History as History
from .state import ResumeError as ResumeError
