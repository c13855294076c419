"""The ways to take a step, with the job of the last step where only the scalars of the losses are new."""

from __future__ import annotations  # torch.compile traces no `list[...]` that is evaluated.

from torch import Tensor

from emo_torch._kernels import library
from emo_torch._kernels.plan import Params
from emo_torch._kernels.ready import ReadyStep
from emo_torch._pieces import emotion
from emo_torch._pieces.emotion import wide_dtype
from emo_torch._rules.recipe import Group, Recipe, State
from emo_torch._step.feeling import Feeling, numbers_of, scalars_of
from emo_torch._step.loss_memory import LossMemory
from emo_torch._step.ways import WAYS


def step_by_ready_job(
    params: list[Tensor],
    grads: list[Tensor],
    states: list[State],
    *,
    recipe: Recipe,
    feeling: Feeling,
    group: Group,
    memory: LossMemory,
) -> list[int]:
    """Takes a step as `WAYS.step`, by the job of the last step if that job still fits.

    Args:
        params: the parameters; as `Params` with a layout, their plan is valid.
        grads: the gradients of the parameters.
        states: the states of the parameters.
        recipe: the recipe of the member.
        feeling: the feeling.
        group: the options.
        memory: the memory of the losses, whose tensors the group holds.

    Returns:
        The indices of the tensors that were not stepped, as `WAYS.step` returns them.
    """
    layout = params.layout if isinstance(params, Params) else None
    if layout is None:
        return WAYS.step(params, grads, states, recipe=recipe, feeling=feeling, group=group)
    # The plan of the group is valid: the job of the last step may be, too.
    prepared, found = layout.prepared, library()
    ready: ReadyStep | None = prepared.get("ready") if emotion.IS_CPU_READ else None
    if ready is not None and ready.fits(group, found):
        numbers = numbers_of(feeling, group, params[0].dtype)
        if ready.run(params, numbers, scalars_of(feeling, group)):
            return []
    job = prepared.get("job")
    prepared.pop("taken", None)
    remaining = WAYS.step(params, grads, states, recipe=recipe, feeling=feeling, group=group)
    is_same = not remaining and prepared.get("taken") is job
    is_single = recipe.choose is None and recipe.first is None
    may_be_ready = is_same and is_single and (ready is None or ready.is_possible)
    if may_be_ready and job is not None and found is not None:
        read = ("params", "lr", *memory.by_name)
        prepared["ready"] = ReadyStep(layout, job, wide_dtype(params[0]), group, read, found)
    return remaining
