"""The fused way: one call of compiled C steps many tensors, and reads and writes their memory once.

`describe.py` describes a step as data. `cpu.py` takes the step with compiled C, `cuda.py` takes it with
Triton, and `blocked.py` takes it with PyTorch's own operations where there is no compiled code.
"""

from emo_torch._kernels.describe import FILTERS as FILTERS
from emo_torch._kernels.describe import FIRST_STEPS as FIRST_STEPS
from emo_torch._kernels.describe import RULES as RULES
from emo_torch._kernels.describe import STEERED as STEERED
from emo_torch._kernels.describe import FusedRule as FusedRule
from emo_torch._kernels.describe import FusedStep as FusedStep
from emo_torch._kernels.describe import Signal as Signal
from emo_torch._kernels.job import library as library
