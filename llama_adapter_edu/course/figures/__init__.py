"""The course's figures: still ones for matplotlib, and pages of HTML that move under the hand.

`plots.py` draws. `stored_dial.py` is the dial with stored stops, `live_dial.py` the one on a model
of yours; `reads.py` shows what tokens read from prompts, `way.py` the paper's picture in steps.
`page.py` makes one piece of HTML of data and a script in `js/`.
"""

from .live_dial import dial as dial
from .page import Page as Page
from .plots import BLUE as BLUE
from .plots import GREEN as GREEN
from .plots import GREY as GREY
from .plots import ORANGE as ORANGE
from .plots import PINK as PINK
from .plots import SKY as SKY
from .plots import WIDEST as WIDEST
from .plots import draw_tensors as draw_tensors
from .plots import heatmap as heatmap
from .plots import mark_negative as mark_negative
from .plots import plot_gates as plot_gates
from .plots import plot_loss as plot_loss
from .plots import use_style as use_style
from .reads import microscope as microscope
from .reads import plot_reads as plot_reads
from .reads import prompt_reads as prompt_reads
from .stored_dial import gate_dial as gate_dial
from .stored_dial import plot_dial as plot_dial
from .way import token_way as token_way
