"""The base of the optimizers with an emotion, with the properties that show the emotion."""

from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from emo_torch._checks.validation import (
    check_choice,
    check_divisor,
    check_flag,
    check_group,
    check_learning_rate,
    check_shadow_ratio,
)
from emo_torch._pieces.early_stop import WINDOW, went_quiet
from emo_torch._pieces.emotion import (
    Emotion,
    EmotionArrays,
    EmotionState,
    feel_in_place,
    init_emotion,
)
from emo_torch._pieces.replicas import LossGroup
from emo_torch._pieces.rounding import check_rounding
from emo_torch._pieces.shadow_effect import Keep, step_scale
from emo_torch._pieces.shadow_system import ShadowRatio, shadow_ratio_function
from emo_torch._pieces.weight_decay import MODES
from emo_torch._rules.recipe import Group, State
from emo_torch._step.feeling import Feeling
from emo_torch._step.loss_optimizer import LossOptimizer
from emo_torch._step.ready_ways import step_by_ready_job
from emo_torch._step.ways import WAYS

HISTORY = tuple(f"emotion_history_{index:02d}" for index in range(WINDOW))
SHARED_OPTIONS = ("short_factor", "long_factor", "gain", "shadow_ratio", "maximize")
"""Options of the emotion, of which an optimizer has one: a group cannot set them for itself."""


class EmoOptimizer(LossOptimizer):
    """The base of the members with an emotion: feels the loss once a step, and blends with a shadow.

    A member sets `recipe`, and passes its options to `__init__` (see `options_of`).

    Args:
        params: the parameters, or groups of parameters, which may have options of their own.
        options: the options of the groups, by name (see `options_of`).
        process_group: the processes over which the loss is averaged; `None` for all, `False` for none.

    Raises:
        ValueError: for an option out of its range.

    Example:
        >>> import emo_torch
        >>> issubclass(emo_torch.EmoSens, emo_torch.EmoOptimizer)
        True
    """

    memory_title = "emotion"
    shared_options: tuple[str, ...] = SHARED_OPTIONS
    shadow_effect: bool = True
    """Whether the update of the member is filtered and scaled; derived from the recipe."""

    _emotion: EmotionState
    _arrays: EmotionArrays | None = None
    _shadow_exists: Tensor
    _shadow_ratio: Tensor

    def __init_subclass__(cls, **given: Any) -> None:
        super().__init_subclass__(**given)
        if "recipe" in cls.__dict__:
            cls.shadow_effect = cls.recipe.filter is not None

    def __init__(self, params: ParamsT, options: Group, *, process_group: LossGroup = None) -> None:
        shadow_ratio = options["shadow_ratio"]
        check_shadow_ratio(shadow_ratio)
        # A function cannot be loaded safely from a file, so the groups store the word "function" instead.
        self._shadow_ratio_of = shadow_ratio if callable(shadow_ratio) else None
        options["shadow_ratio"] = "function" if callable(shadow_ratio) else shadow_ratio
        options["weight_decay_divisor"] = _divisor(options)
        super().__init__(params, options, process_group=process_group)

    def check_options(self, options: Group) -> None:
        """Raises a `ValueError` for an option of a group that is out of its range."""
        check_group(options, MODES)
        check_choice("shadow_ratio", options["shadow_ratio"], ("v2.0", "v1.0", "function"))
        check_rounding(options)

    def update_memory(self, loss: Tensor | None, **extra_losses: Any) -> Feeling:
        """Updates the emotion with the loss; returns the scalars of the step, such as the shadow ratio."""
        del extra_losses
        assert loss is not None
        group = self.param_groups[0]
        # torch.compile of PyTorch 2.11 traces no attribute that is set on an optimizer.
        is_eager = not torch.compiler.is_compiling()
        # In place: the groups, and captured graphs, hold these tensors.
        arrays = feel_in_place(
            self._emotion,
            -loss if group.get("maximize") else loss,
            short_factor=group["short_factor"],
            long_factor=group["long_factor"],
            gain=group["gain"],
            arrays=self._arrays if is_eager else None,
        )
        if is_eager:
            self._arrays = arrays
        scalar = self._emotion.scalar
        if not any(group["use_shadow"] for group in self.param_groups):
            return Feeling(scalar, self._shadow_ratio)
        # A name from a loaded state overrides the function that the optimizer was made with.
        given: ShadowRatio = group["shadow_ratio"]
        if group["shadow_ratio"] == "function" and self._shadow_ratio_of is not None:
            given = self._shadow_ratio_of
        ratio_of = shadow_ratio_function(given)
        ratio = torch.as_tensor(ratio_of(scalar), dtype=scalar.dtype, device=scalar.device)
        self._shadow_ratio.copy_(ratio * self._shadow_exists)
        self._shadow_exists.logical_or_(ratio > 0)
        return Feeling(scalar, ratio)

    def step_count(self) -> Tensor:
        """Returns the number of steps, the current step included, as a tensor of shape `[]`."""
        return self._emotion.felt + self._emotion.held

    # The properties that show the emotion.

    @property
    def emotion(self) -> Emotion:
        """The current emotion, as copies; no sync with the device."""
        state = self._emotion
        return Emotion(
            short=state.short.clone(),
            long=state.long.clone(),
            scalar=state.scalar.clone(),
            step_scale=step_scale(state.scalar),
            shadow_ratio=self._shadow_ratio.clone(),
            should_stop=state.should_stop.clone(),
            is_quiet=went_quiet(state.history, state.felt),
            felt=state.felt.clone(),
            held=state.held.clone(),
        )

    @property
    def should_stop(self) -> bool:
        """Whether training has ever gone quiet; waits for the device (`emotion.should_stop` doesn't)."""
        return bool(self._emotion.should_stop)

    def keep_of(self, group: Group) -> Keep:
        """Returns which elements the filter keeps in a group."""
        return self.recipe.keep(group)

    def step_tensors(
        self,
        params: list[Tensor],
        grads: list[Tensor],
        states: list[State],
        *,
        feeling: Feeling,
        group: Group,
    ) -> list[int]:
        """Moves the parameters of a group that have a gradient."""
        recipe = self.recipe
        if recipe.choose is not None:  # The job changes with the rule of the step.
            return WAYS.step(params, grads, states, recipe=recipe, feeling=feeling, group=group)
        return step_by_ready_job(
            params, grads, states, recipe=recipe, feeling=feeling, group=group, memory=self._memory
        )

    def emotion_tensors(self) -> State:
        """Returns the tensors of the emotion by their names; not copies."""
        shadow = {"shadow_exists": self._shadow_exists, "shadow_ratio": self._shadow_ratio}
        return {**self._emotion._asdict(), **shadow}

    def named_memory(self) -> State:
        """Returns the tensors of the memory by the names that the bridge to `emo_optax` gives them."""
        return {f"emotion/{name}": tensor for name, tensor in self.emotion_tensors().items()}

    # The tensors of the memory.

    def first_memory(self) -> tuple[Tensor, ...]:
        """Returns the statistics of the losses before the first loss."""
        never, none = torch.zeros((), dtype=torch.bool), torch.zeros(())
        return (*init_emotion(torch.float32), never, none)

    def bind_memory(self, memory: tuple[Tensor, ...]) -> State:
        """Uses these tensors as the memory from now on, and returns them by their names in the groups."""
        *emotion, self._shadow_exists, self._shadow_ratio = memory
        self._emotion, self._arrays = EmotionState(*emotion), None
        flat = {f"emotion_{name}": tensor for name, tensor in self._emotion._asdict().items()}
        del flat["emotion_history"]
        flat["emotion_shadow_exists"] = self._shadow_exists
        flat["emotion_shadow_ratio"] = self._shadow_ratio
        # The history as scalars: some checkpointers compare the values of a group, which fails for vectors.
        flat.update(zip(HISTORY, self._emotion.history.unbind(), strict=True))
        return flat

    def memory_from_group(self, group: Group) -> tuple[Tensor, ...]:
        """Returns the tensors of the memory from a group that was loaded or copied."""
        fields = {name: group[f"emotion_{name}"] for name in EmotionState._fields if name != "history"}
        fields["history"] = torch.stack([torch.as_tensor(group[name]) for name in HISTORY])
        emotion = EmotionState(**{name: torch.as_tensor(value) for name, value in fields.items()})
        exists = torch.as_tensor(group["emotion_shadow_exists"])
        ratio = torch.as_tensor(group["emotion_shadow_ratio"])
        return (*emotion, exists, ratio)

    def memory_names(self) -> tuple[str, ...]:
        """Returns the names of the tensors of the memory in the groups."""
        names = [f"emotion_{name}" for name in EmotionState._fields if name != "history"]
        return (*names, "emotion_shadow_exists", "emotion_shadow_ratio", *HISTORY)

    def _check_state_dict(self, loaded: dict[str, Any]) -> None:
        super()._check_state_dict(loaded)
        for saved in loaded["param_groups"]:
            if saved.get("shadow_ratio") == "function" and self._shadow_ratio_of is None:
                raise ValueError(
                    "The state was saved with a function for shadow_ratio, and a state cannot hold a "
                    f"function. Make the {type(self).__name__} with the same function, then load the state"
                )

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_shadow_ratio_of": self._shadow_ratio_of}


def _divisor(options: Group) -> float | None:
    """Removes `decoupled_weight_decay` from the options; returns the divisor of the weight decay."""
    is_divided = options.pop("decoupled_weight_decay", False)
    check_learning_rate(options["lr"])
    check_flag("decoupled_weight_decay", is_divided)
    if not is_divided:
        return None
    check_divisor(options["lr"], options["weight_decay_mode"])
    return float(options["lr"])
