"""The Emo optimizers for Optax: gradient transformations that read the loss.

    optimizer = emo_optax.emo_pilot()
    state = optimizer.init(params)
    loss, grads = jax.value_and_grad(loss_of)(params)
    updates, state = optimizer.update(grads, state, params, value=loss)

Donate parameters and state to a jitted step, `jax.jit(step, donate_argnums=(0, 1))`: XLA then writes the
new arrays over the old ones. Without donation a step holds both at once.

Members (`create_optimizer("EmoSens")` makes one by name, `list_optimizers` lists the names):
    emo_pilot, emo_pilot_airy       find the length of their steps; `eval_params` shows averaged weights
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
    get_emotion, get_pilot, get_pulse, get_drive, get_divergence, get_metrics, get_runaway, set_emotion
    save_checkpoint, load_checkpoint            a whole run in one file
    to_arrays, from_arrays, save_arrays, load_arrays    a run that moves to `emo_torch`, or from it
    decay_mask                      weight decay for matrices alone

Pieces, for `optax.chain` inside `share_emotion`: `filter_by_emotion`, `blend_with_shadow`, ... and the
rules `scale_by_uncorrected_adam`, `scale_by_lion`, `scale_by_factored_moments`, ...

`emo_optax.integrations` has Flax. Errors: `LossMissingError`, `EmotionMissingError`, `CheckpointError`;
warnings: `EmoWarning`.
"""

from typing import TYPE_CHECKING

from emo_shared.first_use import names_on_first_use as _names_on_first_use
from emo_shared.version import __version__ as __version__

if TYPE_CHECKING:
    from emo_optax._public import *
else:
    # Importing the package imports no framework: the first use of a name does.
    __getattr__, __dir__ = _names_on_first_use(__name__, extra="jax")
