"""The Emo optimizers for Optax: gradient transformations that read the loss.

    optimizer = emo_optax.emo_pilot()
    state = optimizer.init(params)
    loss, grads = jax.value_and_grad(loss_of)(params)
    updates, state = optimizer.update(grads, state, params, value=loss)

Donate parameters and state to a jitted step, `jax.jit(step, donate_argnums=(0, 1))`: XLA then writes the
new arrays over the old ones. Without donation a step holds both at once.

Members (`create_optimizer("EmoSens")` makes one by name, `list_optimizers` lists the names):
    emo_pilot                       finds the length of its steps; `eval_params` shows averaged weights
    emo_sens, emo_airy, emo_cats    second generation: Adam's moments, row and column factors, Lion's signs
    emo_navi, emo_fact, emo_lynx    first generation: the same three rules, without the filter
    emo_clan, emo_neco, emo_zeal    several rules; the emotion chooses one for each step
    emo_navi36, emo_fact36, emo_lynx36                      the published v3.6.1, with three averages
    emo_sens3, emo_airy3, emo_cats3, emo_tion, emo_void     third generation: the loss makes the rate
    ref_adamw_mini_schedule_free    adds averaged weights to its momentum, guided by training losses

Around other transformations:
    emotional                       makes any transformation of Optax emotional
    autopilot                       steers any transformation as EmoPilot does
    accumulate, average_weights, early_stop, scale_by_runaway, pulse_schedule       one piece alone
    carry_loss, loss_from_gradient, loss_from_function, bind_extra_args    where no loss can be passed

To see and to save (each takes the state of any optimizer that holds the member):
    get_emotion, get_pilot, get_pulse, get_drive, get_divergence, get_metrics, get_runaway
    save_checkpoint, load_checkpoint            a whole run in one file
    to_arrays, from_arrays, save_arrays, load_arrays    a run that moves to `emo_torch`, or from it
    decay_mask                      weight decay for matrices alone

Pieces, for `optax.chain` inside `share_emotion`: `filter_by_emotion`, `blend_with_shadow`, ... and the
rules `scale_by_uncorrected_adam`, `scale_by_lion`, `scale_by_factored_moments`, ...

`emo_optax.integrations` has Flax. Errors: `LossMissingError`, `EmotionMissingError`, `CheckpointError`;
warnings: `EmoWarning`.
"""

from types import ModuleType as _ModuleType

from emo_optax._checks.errors import EmotionMissingError as EmotionMissingError
from emo_optax._checks.errors import EmoWarning as EmoWarning
from emo_optax._checks.errors import LossMissingError as LossMissingError
from emo_optax._members.by_name import create_optimizer as create_optimizer
from emo_optax._members.by_name import list_optimizers as list_optimizers
from emo_optax._members.emo_airy import emo_airy as emo_airy
from emo_optax._members.emo_airy3 import emo_airy3 as emo_airy3
from emo_optax._members.emo_cats import emo_cats as emo_cats
from emo_optax._members.emo_cats3 import emo_cats3 as emo_cats3
from emo_optax._members.emo_clan import emo_clan as emo_clan
from emo_optax._members.emo_fact import emo_fact as emo_fact
from emo_optax._members.emo_fact36 import emo_fact36 as emo_fact36
from emo_optax._members.emo_lynx import emo_lynx as emo_lynx
from emo_optax._members.emo_lynx36 import emo_lynx36 as emo_lynx36
from emo_optax._members.emo_navi import emo_navi as emo_navi
from emo_optax._members.emo_navi36 import emo_navi36 as emo_navi36
from emo_optax._members.emo_neco import emo_neco as emo_neco
from emo_optax._members.emo_pilot import PilotMomentsState as PilotMomentsState
from emo_optax._members.emo_pilot import emo_pilot as emo_pilot
from emo_optax._members.emo_sens import emo_sens as emo_sens
from emo_optax._members.emo_sens3 import emo_sens3 as emo_sens3
from emo_optax._members.emo_tion import emo_tion as emo_tion
from emo_optax._members.emo_void import emo_void as emo_void
from emo_optax._members.emo_zeal import emo_zeal as emo_zeal
from emo_optax._members.ref_adamw_mini_schedule_free import (
    RefAdamWMiniScheduleFreeState as RefAdamWMiniScheduleFreeState,
)
from emo_optax._members.ref_adamw_mini_schedule_free import RefMomentsState as RefMomentsState
from emo_optax._members.ref_adamw_mini_schedule_free import get_divergence as get_divergence
from emo_optax._members.ref_adamw_mini_schedule_free import (
    ref_adamw_mini_schedule_free as ref_adamw_mini_schedule_free,
)
from emo_optax._pieces.accumulation import AccumulateState as AccumulateState
from emo_optax._pieces.accumulation import accumulate as accumulate
from emo_optax._pieces.averaged_weights import AverageWeightsState as AverageWeightsState
from emo_optax._pieces.averaged_weights import average_rate as average_rate
from emo_optax._pieces.averaged_weights import average_weights as average_weights
from emo_optax._pieces.ceiling import step_ceiling as step_ceiling
from emo_optax._pieces.courage import CourageState as CourageState
from emo_optax._pieces.courage import init_courage as init_courage
from emo_optax._pieces.courage import move_courage as move_courage
from emo_optax._pieces.divergence import DivergenceState as DivergenceState
from emo_optax._pieces.divergence import init_divergence as init_divergence
from emo_optax._pieces.divergence import injection_strength as injection_strength
from emo_optax._pieces.divergence import update_divergence as update_divergence
from emo_optax._pieces.drive import DriveState as DriveState
from emo_optax._pieces.drive import ShareDriveState as ShareDriveState
from emo_optax._pieces.drive import drive_factor as drive_factor
from emo_optax._pieces.drive import feel_drive as feel_drive
from emo_optax._pieces.drive import init_drive as init_drive
from emo_optax._pieces.drive import scale_by_drive as scale_by_drive
from emo_optax._pieces.drive import share_drive as share_drive
from emo_optax._pieces.early_stop import went_quiet as went_quiet
from emo_optax._pieces.emotion import Emotion as Emotion
from emo_optax._pieces.emotion import EmotionState as EmotionState
from emo_optax._pieces.emotion import ShareEmotionState as ShareEmotionState
from emo_optax._pieces.emotion import feel as feel
from emo_optax._pieces.emotion import init_emotion as init_emotion
from emo_optax._pieces.emotion import share_emotion as share_emotion
from emo_optax._pieces.emotion import track_emotion as track_emotion
from emo_optax._pieces.gate import GateByNormState as GateByNormState
from emo_optax._pieces.gate import gate as gate
from emo_optax._pieces.gate import gate_by_norm as gate_by_norm
from emo_optax._pieces.pilot import Pilot as Pilot
from emo_optax._pieces.pilot import PilotState as PilotState
from emo_optax._pieces.pilot import SteeredState as SteeredState
from emo_optax._pieces.pilot import eval_params as eval_params
from emo_optax._pieces.pilot import get_pilot as get_pilot
from emo_optax._pieces.pulse import PulseState as PulseState
from emo_optax._pieces.pulse import feel_pulse as feel_pulse
from emo_optax._pieces.pulse import init_pulse as init_pulse
from emo_optax._pieces.relative_emotion import RelativeEmotionState as RelativeEmotionState
from emo_optax._pieces.relative_emotion import feel_relative as feel_relative
from emo_optax._pieces.relative_emotion import init_relative_emotion as init_relative_emotion
from emo_optax._pieces.rounding import RoundStochasticallyState as RoundStochasticallyState
from emo_optax._pieces.rounding import RoundWithKahanState as RoundWithKahanState
from emo_optax._pieces.rounding import round_stochastically as round_stochastically
from emo_optax._pieces.rounding import round_with_kahan as round_with_kahan
from emo_optax._pieces.shadow_effect import FilterByEmotionState as FilterByEmotionState
from emo_optax._pieces.shadow_effect import ScaleByEmotionState as ScaleByEmotionState
from emo_optax._pieces.shadow_effect import filter_by_emotion as filter_by_emotion
from emo_optax._pieces.shadow_effect import keep_elements as keep_elements
from emo_optax._pieces.shadow_effect import keep_rows_and_columns as keep_rows_and_columns
from emo_optax._pieces.shadow_effect import scale_by_emotion as scale_by_emotion
from emo_optax._pieces.shadow_effect import step_scale as step_scale
from emo_optax._pieces.shadow_system import BlendWithShadowState as BlendWithShadowState
from emo_optax._pieces.shadow_system import blend_with_shadow as blend_with_shadow
from emo_optax._pieces.shadow_system import shadow_ratio_v1 as shadow_ratio_v1
from emo_optax._pieces.shadow_system import shadow_ratio_v2 as shadow_ratio_v2
from emo_optax._pieces.share_pulse import SharePulseState as SharePulseState
from emo_optax._pieces.share_pulse import pulse_schedule as pulse_schedule
from emo_optax._pieces.share_pulse import scale_by_pulse as scale_by_pulse
from emo_optax._pieces.share_pulse import share_pulse as share_pulse
from emo_optax._pieces.smoothed_norm import learning_rate_from_norm as learning_rate_from_norm
from emo_optax._pieces.smoothed_norm import smooth_norm as smooth_norm
from emo_optax._pieces.trust import trust_of as trust_of
from emo_optax._pieces.weight_decay import AddWeightDecayState as AddWeightDecayState
from emo_optax._pieces.weight_decay import add_weight_decay as add_weight_decay
from emo_optax._pieces.weight_decay import decay_mask as decay_mask
from emo_optax._rules.adam import ScaleByUncorrectedAdamState as ScaleByUncorrectedAdamState
from emo_optax._rules.adam import scale_by_uncorrected_adam as scale_by_uncorrected_adam
from emo_optax._rules.eight_bit import CodedMoment as CodedMoment
from emo_optax._rules.factors import ScaleByFactorsState as ScaleByFactorsState
from emo_optax._rules.factors import scale_by_factored_moments as scale_by_factored_moments
from emo_optax._rules.lion import ScaleByLionState as ScaleByLionState
from emo_optax._rules.lion import scale_by_lion as scale_by_lion
from emo_optax._rules.sign_rules import HoldNormState as HoldNormState
from emo_optax._rules.sign_rules import ScaleByFreshSignState as ScaleByFreshSignState
from emo_optax._rules.sign_rules import ScaleBySignState as ScaleBySignState
from emo_optax._rules.sign_rules import hold_norm as hold_norm
from emo_optax._rules.sign_rules import scale_by_fresh_sign as scale_by_fresh_sign
from emo_optax._rules.sign_rules import scale_by_sign as scale_by_sign
from emo_optax._rules.sign_rules import sum_of_norms as sum_of_norms
from emo_optax._rules.signs import ScaleByMomentumState as ScaleByMomentumState
from emo_optax._rules.signs import scale_by_cautious_sign as scale_by_cautious_sign
from emo_optax._rules.signs import scale_by_softsign as scale_by_softsign
from emo_optax._rules.switch import StepFirstState as StepFirstState
from emo_optax._rules.switch import SwitchByEmotionState as SwitchByEmotionState
from emo_optax._rules.switch import step_first as step_first
from emo_optax._rules.switch import switch_by_emotion as switch_by_emotion
from emo_optax._state.bridge import from_arrays as from_arrays
from emo_optax._state.bridge import to_arrays as to_arrays
from emo_optax._state.checkpoint import CHECKPOINT_VERSION as CHECKPOINT_VERSION
from emo_optax._state.checkpoint import load_checkpoint as load_checkpoint
from emo_optax._state.checkpoint import save_checkpoint as save_checkpoint
from emo_optax._state.export import register_for_export as register_for_export
from emo_optax._state.published import load_published_state as load_published_state
from emo_optax._wrappers.autopilot import autopilot as autopilot
from emo_optax._wrappers.early_stop_monitor import EarlyStop as EarlyStop
from emo_optax._wrappers.early_stop_monitor import EarlyStopState as EarlyStopState
from emo_optax._wrappers.early_stop_monitor import early_stop as early_stop
from emo_optax._wrappers.emotional import emotional as emotional
from emo_optax._wrappers.emotional import get_emotion as get_emotion
from emo_optax._wrappers.get_pulse import Drive as Drive
from emo_optax._wrappers.get_pulse import Pulse as Pulse
from emo_optax._wrappers.get_pulse import get_drive as get_drive
from emo_optax._wrappers.get_pulse import get_pulse as get_pulse
from emo_optax._wrappers.loss_from_gradient import carry_loss as carry_loss
from emo_optax._wrappers.loss_from_gradient import loss_from_function as loss_from_function
from emo_optax._wrappers.loss_from_gradient import loss_from_gradient as loss_from_gradient
from emo_optax._wrappers.metrics import get_metrics as get_metrics
from emo_optax._wrappers.runaway import Runaway as Runaway
from emo_optax._wrappers.runaway import ScaleByRunawayState as ScaleByRunawayState
from emo_optax._wrappers.runaway import get_runaway as get_runaway
from emo_optax._wrappers.runaway import gradient_moments as gradient_moments
from emo_optax._wrappers.runaway import runaway_emotion as runaway_emotion
from emo_optax._wrappers.runaway import scale_by_runaway as scale_by_runaway
from emo_optax._wrappers.runaway import track_runaway as track_runaway
from emo_optax._wrappers.wrappers import bind_extra_args as bind_extra_args
from emo_shared.arrays import ARRAYS_VERSION as ARRAYS_VERSION
from emo_shared.arrays import load_arrays as load_arrays
from emo_shared.arrays import save_arrays as save_arrays
from emo_shared.errors import CheckpointError as CheckpointError
from emo_shared.version import __version__ as __version__

__all__ = [
    name
    for name, thing in list(globals().items())
    if not name.startswith("_") and not isinstance(thing, _ModuleType)
]
