"""The Emo optimizers for PyTorch: optimizers that read the loss.

    import emo_torch

    optimizer = emo_torch.EmoPilot(model.parameters())
    ...
    loss.backward()
    optimizer.step(loss=loss)

Members (`create_optimizer("emo_sens", params)` makes one by name, `list_optimizers` lists the names):
    EmoPilot, EmoPilotAiry       find the length of their steps; `optimizer.eval()` shows averaged weights
    EmoSens, EmoAiry, EmoCats    second generation: Adam's moments, row and column factors, Lion's signs
    EmoNavi, EmoFact, EmoLynx    first generation: the same three rules, without the filter
    EmoClan, EmoNeco, EmoZeal    several rules; the emotion chooses one for each step
    EmoNavi36, EmoFact36, EmoLynx36                     the published v3.6.1, with three averages
    EmoSens3, EmoAiry3, EmoCats3, EmoTion, EmoVoid      third generation: the loss makes the rate
    RefAdamWMiniScheduleFree     adds averaged weights to its momentum, guided by training losses

Around other optimizers:
    Emotional                    makes any optimizer of PyTorch emotional
    Autopilot                    steers any optimizer as EmoPilot does
    EarlyStop, scale_by_runaway, track_runaway, EmoPulseScheduler    one signal alone
    listen, unwrap               take losses from backward passes; find an optimizer inside wrappers

To see and to save:
    get_metrics, get_runaway     values for a logger
    save_checkpoint, load_checkpoint            a whole run in one file
    to_arrays, from_arrays, save_arrays, load_arrays    a run that moves to `emo_optax`, or from it
    decay_groups, decay_mask     weight decay for matrices alone

Pieces (functions from tensors to tensors): `feel`, `filter_by_emotion`, `blend_with_shadow`, `gate`, ...
and the rules `scale_by_uncorrected_adam`, `scale_by_lion`, `scale_by_factored_moments`, ...

`emo_torch.integrations` has Accelerate, Lightning, kohya-ss and Transformers; `python -m emo_torch.launch`
runs a script unchanged. Errors: `LossMissingError`, `CheckpointError`; warnings: `EmoWarning`.
"""

from typing import TYPE_CHECKING

from emo_shared.first_use import names_on_first_use as _names_on_first_use
from emo_shared.version import __version__ as __version__

if TYPE_CHECKING:
    from emo_torch._public import *
else:
    # Importing the package imports no framework: the first use of a name does.
    __getattr__, __dir__ = _names_on_first_use(__name__, extra="torch")
