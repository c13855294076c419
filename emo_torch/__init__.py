"""The Emo optimizers for PyTorch: optimizers that read the loss."""

from emo_shared.arrays import ARRAYS_VERSION as ARRAYS_VERSION
from emo_shared.arrays import load_arrays as load_arrays
from emo_shared.arrays import save_arrays as save_arrays
from emo_shared.errors import CheckpointError as CheckpointError
from emo_torch._any_optimizer import Emotional as Emotional
from emo_torch._bridge import from_arrays as from_arrays
from emo_torch._bridge import to_arrays as to_arrays
from emo_torch._by_name import create_optimizer as create_optimizer
from emo_torch._by_name import list_optimizers as list_optimizers
from emo_torch._checkpoint import CHECKPOINT_VERSION as CHECKPOINT_VERSION
from emo_torch._checkpoint import load_checkpoint as load_checkpoint
from emo_torch._checkpoint import save_checkpoint as save_checkpoint
from emo_torch._divergence import DivergenceState as DivergenceState
from emo_torch._divergence import init_divergence as init_divergence
from emo_torch._divergence import injection_strength as injection_strength
from emo_torch._divergence import watch as watch
from emo_torch._early_stop import went_quiet as went_quiet
from emo_torch._early_stop_monitor import EarlyStop as EarlyStop
from emo_torch._emo_airy import EmoAiry as EmoAiry
from emo_torch._emo_cats import EmoCats as EmoCats
from emo_torch._emo_clan import EmoClan as EmoClan
from emo_torch._emo_fact import EmoFact as EmoFact
from emo_torch._emo_lynx import EmoLynx as EmoLynx
from emo_torch._emo_navi import EmoNavi as EmoNavi
from emo_torch._emo_neco import EmoNeco as EmoNeco
from emo_torch._emo_sens import EmoSens as EmoSens
from emo_torch._emo_zeal import EmoZeal as EmoZeal
from emo_torch._emotion import Emotion as Emotion
from emo_torch._emotion import EmotionState as EmotionState
from emo_torch._emotion import feel as feel
from emo_torch._emotion import init_emotion as init_emotion
from emo_torch._emotional import EmoOptimizer as EmoOptimizer
from emo_torch._emotional import LossOptimizer as LossOptimizer
from emo_torch._errors import EmoWarning as EmoWarning
from emo_torch._errors import LossMissingError as LossMissingError
from emo_torch._metrics import get_metrics as get_metrics
from emo_torch._ref_adamw_mini_schedule_free import (
    RefAdamWMiniScheduleFree as RefAdamWMiniScheduleFree,
)
from emo_torch._replicas import average_over_replicas as average_over_replicas
from emo_torch._rounding import round_stochastically as round_stochastically
from emo_torch._rounding import round_with_kahan as round_with_kahan
from emo_torch._rounding import rounding_keys as rounding_keys
from emo_torch._rules import scale_by_cautious_sign as scale_by_cautious_sign
from emo_torch._rules import scale_by_factored_moments as scale_by_factored_moments
from emo_torch._rules import scale_by_factors as scale_by_factors
from emo_torch._rules import scale_by_lion as scale_by_lion
from emo_torch._rules import scale_by_softsign as scale_by_softsign
from emo_torch._rules import scale_by_uncorrected_adam as scale_by_uncorrected_adam
from emo_torch._runaway import Runaway as Runaway
from emo_torch._runaway import RunawayMonitor as RunawayMonitor
from emo_torch._runaway import get_runaway as get_runaway
from emo_torch._runaway import gradient_moments as gradient_moments
from emo_torch._runaway import runaway_emotion as runaway_emotion
from emo_torch._runaway import scale_by_runaway as scale_by_runaway
from emo_torch._runaway import track_runaway as track_runaway
from emo_torch._shadow_effect import filter_by_emotion as filter_by_emotion
from emo_torch._shadow_effect import keep_elements as keep_elements
from emo_torch._shadow_effect import keep_rows_and_columns as keep_rows_and_columns
from emo_torch._shadow_effect import step_scale as step_scale
from emo_torch._shadow_system import blend_with_shadow as blend_with_shadow
from emo_torch._shadow_system import shadow_ratio_v1 as shadow_ratio_v1
from emo_torch._shadow_system import shadow_ratio_v2 as shadow_ratio_v2
from emo_torch._smoothed_norm import learning_rate_from_norm as learning_rate_from_norm
from emo_torch._smoothed_norm import smooth_norm as smooth_norm
from emo_torch._switch import switch_by_emotion as switch_by_emotion
from emo_torch._weight_decay import add_weight_decay as add_weight_decay
from emo_torch._weight_decay import decay_groups as decay_groups
from emo_torch._weight_decay import decay_mask as decay_mask
from emo_torch._wrappers import unwrap as unwrap

__version__ = "0.1.0"
