"""The Emo optimizers for Optax: gradient transformations that read the loss.

Donate parameters and state to a jitted step, `jax.jit(step, donate_argnums=(0, 1))`: XLA then writes the
new ones over the old ones, where it would hold both at once.
"""

from emo_optax._accumulation import AccumulateState as AccumulateState
from emo_optax._accumulation import accumulate as accumulate
from emo_optax._autopilot import autopilot as autopilot
from emo_optax._averaged_weights import AverageWeightsState as AverageWeightsState
from emo_optax._averaged_weights import average_rate as average_rate
from emo_optax._averaged_weights import average_weights as average_weights
from emo_optax._bridge import ARRAYS_VERSION as ARRAYS_VERSION
from emo_optax._bridge import from_arrays as from_arrays
from emo_optax._bridge import load_arrays as load_arrays
from emo_optax._bridge import save_arrays as save_arrays
from emo_optax._bridge import to_arrays as to_arrays
from emo_optax._by_name import create_optimizer as create_optimizer
from emo_optax._by_name import list_optimizers as list_optimizers
from emo_optax._ceiling import step_ceiling as step_ceiling
from emo_optax._checkpoint import CHECKPOINT_VERSION as CHECKPOINT_VERSION
from emo_optax._checkpoint import load_checkpoint as load_checkpoint
from emo_optax._checkpoint import save_checkpoint as save_checkpoint
from emo_optax._courage import CourageState as CourageState
from emo_optax._courage import init_courage as init_courage
from emo_optax._courage import move_courage as move_courage
from emo_optax._divergence import DivergenceState as DivergenceState
from emo_optax._divergence import init_divergence as init_divergence
from emo_optax._divergence import injection_strength as injection_strength
from emo_optax._divergence import watch as watch
from emo_optax._early_stop import went_quiet as went_quiet
from emo_optax._early_stop_monitor import EarlyStop as EarlyStop
from emo_optax._early_stop_monitor import EarlyStopState as EarlyStopState
from emo_optax._early_stop_monitor import early_stop as early_stop
from emo_optax._emo_airy import emo_airy as emo_airy
from emo_optax._emo_cats import emo_cats as emo_cats
from emo_optax._emo_clan import emo_clan as emo_clan
from emo_optax._emo_fact import emo_fact as emo_fact
from emo_optax._emo_lynx import emo_lynx as emo_lynx
from emo_optax._emo_navi import emo_navi as emo_navi
from emo_optax._emo_neco import emo_neco as emo_neco
from emo_optax._emo_pilot import PilotMomentsState as PilotMomentsState
from emo_optax._emo_pilot import emo_pilot as emo_pilot
from emo_optax._emo_sens import emo_sens as emo_sens
from emo_optax._emo_zeal import emo_zeal as emo_zeal
from emo_optax._emotion import Emotion as Emotion
from emo_optax._emotion import EmotionState as EmotionState
from emo_optax._emotion import ShareEmotionState as ShareEmotionState
from emo_optax._emotion import feel as feel
from emo_optax._emotion import init_emotion as init_emotion
from emo_optax._emotion import share_emotion as share_emotion
from emo_optax._emotion import track_emotion as track_emotion
from emo_optax._emotional import emotional as emotional
from emo_optax._emotional import get_emotion as get_emotion
from emo_optax._errors import CheckpointError as CheckpointError
from emo_optax._errors import EmotionMissingError as EmotionMissingError
from emo_optax._errors import LossMissingError as LossMissingError
from emo_optax._gate import GateByNormState as GateByNormState
from emo_optax._gate import gate as gate
from emo_optax._gate import gate_by_norm as gate_by_norm
from emo_optax._metrics import get_metrics as get_metrics
from emo_optax._pilot import Pilot as Pilot
from emo_optax._pilot import PilotState as PilotState
from emo_optax._pilot import SteeredState as SteeredState
from emo_optax._pilot import eval_params as eval_params
from emo_optax._pilot import get_pilot as get_pilot
from emo_optax._ref_adamw_mini_schedule_free import (
    RefAdamWMiniScheduleFreeState as RefAdamWMiniScheduleFreeState,
)
from emo_optax._ref_adamw_mini_schedule_free import RefMomentsState as RefMomentsState
from emo_optax._ref_adamw_mini_schedule_free import get_divergence as get_divergence
from emo_optax._ref_adamw_mini_schedule_free import (
    ref_adamw_mini_schedule_free as ref_adamw_mini_schedule_free,
)
from emo_optax._relative_emotion import RelativeEmotionState as RelativeEmotionState
from emo_optax._relative_emotion import feel_relative as feel_relative
from emo_optax._relative_emotion import init_relative_emotion as init_relative_emotion
from emo_optax._rounding import RoundStochasticallyState as RoundStochasticallyState
from emo_optax._rounding import RoundWithKahanState as RoundWithKahanState
from emo_optax._rounding import round_stochastically as round_stochastically
from emo_optax._rounding import round_with_kahan as round_with_kahan
from emo_optax._rules import ScaleByFactorsState as ScaleByFactorsState
from emo_optax._rules import ScaleByLionState as ScaleByLionState
from emo_optax._rules import ScaleByMomentumState as ScaleByMomentumState
from emo_optax._rules import ScaleByUncorrectedAdamState as ScaleByUncorrectedAdamState
from emo_optax._rules import scale_by_cautious_sign as scale_by_cautious_sign
from emo_optax._rules import scale_by_factored_moments as scale_by_factored_moments
from emo_optax._rules import scale_by_lion as scale_by_lion
from emo_optax._rules import scale_by_softsign as scale_by_softsign
from emo_optax._rules import scale_by_uncorrected_adam as scale_by_uncorrected_adam
from emo_optax._runaway import Runaway as Runaway
from emo_optax._runaway import ScaleByRunawayState as ScaleByRunawayState
from emo_optax._runaway import get_runaway as get_runaway
from emo_optax._runaway import gradient_moments as gradient_moments
from emo_optax._runaway import runaway_emotion as runaway_emotion
from emo_optax._runaway import scale_by_runaway as scale_by_runaway
from emo_optax._runaway import track_runaway as track_runaway
from emo_optax._shadow_effect import filter_by_emotion as filter_by_emotion
from emo_optax._shadow_effect import keep_elements as keep_elements
from emo_optax._shadow_effect import keep_rows_and_columns as keep_rows_and_columns
from emo_optax._shadow_effect import scale_by_emotion as scale_by_emotion
from emo_optax._shadow_effect import step_scale as step_scale
from emo_optax._shadow_system import BlendWithShadowState as BlendWithShadowState
from emo_optax._shadow_system import blend_with_shadow as blend_with_shadow
from emo_optax._shadow_system import shadow_ratio_v1 as shadow_ratio_v1
from emo_optax._shadow_system import shadow_ratio_v2 as shadow_ratio_v2
from emo_optax._smoothed_norm import learning_rate_from_norm as learning_rate_from_norm
from emo_optax._smoothed_norm import smooth_norm as smooth_norm
from emo_optax._switch import StepFirstState as StepFirstState
from emo_optax._switch import SwitchByEmotionState as SwitchByEmotionState
from emo_optax._switch import step_first as step_first
from emo_optax._switch import switch_by_emotion as switch_by_emotion
from emo_optax._weight_decay import AddWeightDecayState as AddWeightDecayState
from emo_optax._weight_decay import add_weight_decay as add_weight_decay
from emo_optax._weight_decay import decay_mask as decay_mask
from emo_optax._wrappers import bind_extra_args as bind_extra_args

__version__ = "0.1.0"
