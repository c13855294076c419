"""The fused way: a step of many tensors in one call of compiled C, which touches memory once.

`describe.py` says what a step does, as data. `cpu.py` takes such a step with compiled C, `cuda.py` with
Triton, and `blocked.py` with PyTorch's own operations where there is no compiled code.
"""

from emo_torch._kernels.describe import FILTERS as FILTERS
from emo_torch._kernels.describe import FIRST_STEPS as FIRST_STEPS
from emo_torch._kernels.describe import RULES as RULES
from emo_torch._kernels.describe import FusedRule as FusedRule
from emo_torch._kernels.describe import FusedStep as FusedStep
from emo_torch._kernels.describe import Signal as Signal
from emo_torch._kernels.job import library as library
