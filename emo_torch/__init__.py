"""The Emo optimizers for PyTorch: optimizers that read the loss.

    import emo_torch

    optimizer = emo_torch.EmoPilot(model.parameters())
    ...
    loss.backward()
    optimizer.step(loss=loss)

Members (`create_optimizer("emo_sens", params)` makes one by name, `list_optimizers` lists the names):
    EmoPilot                     finds the length of its steps; `optimizer.eval()` shows averaged weights
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

from types import ModuleType as _ModuleType

from emo_shared.arrays import ARRAYS_VERSION as ARRAYS_VERSION
from emo_shared.arrays import load_arrays as load_arrays
from emo_shared.arrays import save_arrays as save_arrays
from emo_shared.errors import CheckpointError as CheckpointError
from emo_shared.version import __version__ as __version__
from emo_torch._checks.errors import EmoWarning as EmoWarning
from emo_torch._checks.errors import LossMissingError as LossMissingError
from emo_torch._members.by_name import create_optimizer as create_optimizer
from emo_torch._members.by_name import list_optimizers as list_optimizers
from emo_torch._members.emo_airy import EmoAiry as EmoAiry
from emo_torch._members.emo_airy3 import EmoAiry3 as EmoAiry3
from emo_torch._members.emo_cats import EmoCats as EmoCats
from emo_torch._members.emo_cats3 import EmoCats3 as EmoCats3
from emo_torch._members.emo_clan import EmoClan as EmoClan
from emo_torch._members.emo_fact import EmoFact as EmoFact
from emo_torch._members.emo_fact36 import EmoFact36 as EmoFact36
from emo_torch._members.emo_lynx import EmoLynx as EmoLynx
from emo_torch._members.emo_lynx36 import EmoLynx36 as EmoLynx36
from emo_torch._members.emo_navi import EmoNavi as EmoNavi
from emo_torch._members.emo_navi36 import EmoNavi36 as EmoNavi36
from emo_torch._members.emo_neco import EmoNeco as EmoNeco
from emo_torch._members.emo_pilot import EmoPilot as EmoPilot
from emo_torch._members.emo_sens import EmoSens as EmoSens
from emo_torch._members.emo_sens3 import EmoSens3 as EmoSens3
from emo_torch._members.emo_tion import EmoTion as EmoTion
from emo_torch._members.emo_void import EmoVoid as EmoVoid
from emo_torch._members.emo_zeal import EmoZeal as EmoZeal
from emo_torch._members.ref_adamw_mini_schedule_free import (
    RefAdamWMiniScheduleFree as RefAdamWMiniScheduleFree,
)
from emo_torch._pieces.averaged_buffers import AveragedBuffers as AveragedBuffers
from emo_torch._pieces.averaged_weights import average_rate as average_rate
from emo_torch._pieces.ceiling import step_ceiling as step_ceiling
from emo_torch._pieces.courage import CourageState as CourageState
from emo_torch._pieces.courage import init_courage as init_courage
from emo_torch._pieces.courage import move_courage as move_courage
from emo_torch._pieces.divergence import DivergenceState as DivergenceState
from emo_torch._pieces.divergence import init_divergence as init_divergence
from emo_torch._pieces.divergence import injection_strength as injection_strength
from emo_torch._pieces.divergence import update_divergence as update_divergence
from emo_torch._pieces.drive import Drive as Drive
from emo_torch._pieces.drive import DriveState as DriveState
from emo_torch._pieces.drive import drive_factor as drive_factor
from emo_torch._pieces.drive import feel_drive as feel_drive
from emo_torch._pieces.drive import init_drive as init_drive
from emo_torch._pieces.early_stop import went_quiet as went_quiet
from emo_torch._pieces.emotion import Emotion as Emotion
from emo_torch._pieces.emotion import EmotionState as EmotionState
from emo_torch._pieces.emotion import feel as feel
from emo_torch._pieces.emotion import init_emotion as init_emotion
from emo_torch._pieces.gate import gate as gate
from emo_torch._pieces.pilot import Pilot as Pilot
from emo_torch._pieces.pilot import PilotState as PilotState
from emo_torch._pieces.pulse import Pulse as Pulse
from emo_torch._pieces.pulse import PulseState as PulseState
from emo_torch._pieces.pulse import feel_pulse as feel_pulse
from emo_torch._pieces.pulse import init_pulse as init_pulse
from emo_torch._pieces.relative_emotion import RelativeEmotionState as RelativeEmotionState
from emo_torch._pieces.relative_emotion import feel_relative as feel_relative
from emo_torch._pieces.relative_emotion import init_relative_emotion as init_relative_emotion
from emo_torch._pieces.replicas import average_over_replicas as average_over_replicas
from emo_torch._pieces.rounding import round_stochastically as round_stochastically
from emo_torch._pieces.rounding import round_with_kahan as round_with_kahan
from emo_torch._pieces.rounding import rounding_keys as rounding_keys
from emo_torch._pieces.shadow_effect import filter_by_emotion as filter_by_emotion
from emo_torch._pieces.shadow_effect import keep_elements as keep_elements
from emo_torch._pieces.shadow_effect import keep_rows_and_columns as keep_rows_and_columns
from emo_torch._pieces.shadow_effect import step_scale as step_scale
from emo_torch._pieces.shadow_system import blend_with_shadow as blend_with_shadow
from emo_torch._pieces.shadow_system import shadow_ratio_v1 as shadow_ratio_v1
from emo_torch._pieces.shadow_system import shadow_ratio_v2 as shadow_ratio_v2
from emo_torch._pieces.smoothed_norm import learning_rate_from_norm as learning_rate_from_norm
from emo_torch._pieces.smoothed_norm import smooth_norm as smooth_norm
from emo_torch._pieces.trust import trust_of as trust_of
from emo_torch._pieces.weight_decay import add_weight_decay as add_weight_decay
from emo_torch._pieces.weight_decay import decay_groups as decay_groups
from emo_torch._pieces.weight_decay import decay_mask as decay_mask
from emo_torch._rules.adam import scale_by_uncorrected_adam as scale_by_uncorrected_adam
from emo_torch._rules.factors import scale_by_factored_moments as scale_by_factored_moments
from emo_torch._rules.factors import scale_by_factors as scale_by_factors
from emo_torch._rules.lion import scale_by_lion as scale_by_lion
from emo_torch._rules.sign_rules import scale_by_fresh_sign as scale_by_fresh_sign
from emo_torch._rules.sign_rules import scale_by_sign as scale_by_sign
from emo_torch._rules.sign_rules import sum_of_norms as sum_of_norms
from emo_torch._rules.signs import scale_by_cautious_sign as scale_by_cautious_sign
from emo_torch._rules.signs import scale_by_softsign as scale_by_softsign
from emo_torch._rules.switch import switch_by_emotion as switch_by_emotion
from emo_torch._state.bridge import from_arrays as from_arrays
from emo_torch._state.bridge import to_arrays as to_arrays
from emo_torch._state.checkpoint import CHECKPOINT_VERSION as CHECKPOINT_VERSION
from emo_torch._state.checkpoint import load_checkpoint as load_checkpoint
from emo_torch._state.checkpoint import save_checkpoint as save_checkpoint
from emo_torch._state.published import load_published_state as load_published_state
from emo_torch._step.emo_optimizer import EmoOptimizer as EmoOptimizer
from emo_torch._step.loss_optimizer import LossOptimizer as LossOptimizer
from emo_torch._wrappers.any_optimizer import Emotional as Emotional
from emo_torch._wrappers.autopilot import Autopilot as Autopilot
from emo_torch._wrappers.early_stop_monitor import EarlyStop as EarlyStop
from emo_torch._wrappers.listen import listen as listen
from emo_torch._wrappers.metrics import get_metrics as get_metrics
from emo_torch._wrappers.pulse_scheduler import EmoPulseScheduler as EmoPulseScheduler
from emo_torch._wrappers.runaway import Runaway as Runaway
from emo_torch._wrappers.runaway import RunawayMonitor as RunawayMonitor
from emo_torch._wrappers.runaway import get_runaway as get_runaway
from emo_torch._wrappers.runaway import gradient_moments as gradient_moments
from emo_torch._wrappers.runaway import runaway_emotion as runaway_emotion
from emo_torch._wrappers.runaway import scale_by_runaway as scale_by_runaway
from emo_torch._wrappers.runaway import track_runaway as track_runaway
from emo_torch._wrappers.wrappers import unwrap as unwrap

__all__ = [
    name
    for name, thing in list(globals().items())
    if not name.startswith("_") and not isinstance(thing, _ModuleType)
]
