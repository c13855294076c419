"""The early-stop signal on its own, for a training with any optimizer, or with none."""

from typing import Any

import torch
from torch import Tensor

from emo_torch._checks.validation import check_factor, check_loss, check_not_negative
from emo_torch._pieces.early_stop import went_quiet
from emo_torch._pieces.emotion import EmotionState, feel, init_emotion, wide_dtype


class EarlyStop:
    r"""Detects from the losses alone when a training has gone quiet.

    .. math::
        s = \tanh(5\,(short - long)), \qquad
        \frac{1}{32} \sum_i |s_i| < 0.05 \quad\text{and}\quad
        \frac{1}{32} \sum_i (s_i - \bar{s})^2 < 0.005

    See `feel` for the averages and `went_quiet` for the test. With the default options, training is quiet
    if the loss has changed by no more than about 0.01 over the last 100 steps. Change `gain` for a
    loss of another unit. A loss that is not finite changes nothing. The optimizers of this package
    give the same signals in their `emotion`.

    Args:
        short_factor: the weight of a new loss in the short average, in (0, 1].
        long_factor: the same for the long average, in (0, 1].
        gain: the factor of the difference of the averages, per unit of the loss, >= 0.
        mean_below: the bound on the mean of the last 32 |s|, in (0, 1].
        variance_below: the bound on their variance, in (0, 1].

    Attributes:
        emotion: the statistics of the losses, an `EmotionState`: in float32, or float64 where that
            is the default dtype, and on the device of the last loss.

    Raises:
        ValueError: for an option out of its range.

    Example:
        >>> import emo_torch
        >>> stop = emo_torch.EarlyStop()
        >>> for step in range(100):
        ...     stop.update(0.25)
        ...     if stop.should_stop:
        ...         break
        >>> print(step, stop.is_quiet)
        31 True

    Source: the early-stop notice of EmoNavi and EmoSens v2.0 by muooon.
    """

    def __init__(
        self,
        *,
        short_factor: float = 0.3,
        long_factor: float = 0.01,
        gain: float = 5.0,
        mean_below: float = 0.05,
        variance_below: float = 0.005,
    ) -> None:
        check_factor("short_factor", short_factor)
        check_factor("long_factor", long_factor)
        check_not_negative("gain", gain)
        check_factor("mean_below", mean_below)
        check_factor("variance_below", variance_below)
        self._averages = {"short_factor": short_factor, "long_factor": long_factor, "gain": gain}
        self._bounds = {"mean_below": mean_below, "variance_below": variance_below}
        self.emotion = init_emotion(wide_dtype(torch.empty(0)))

    @torch.no_grad()
    def update(self, loss: Tensor | float) -> None:
        """Updates the state with the loss of one step, without a sync with the device.

        Args:
            loss: a tensor of one element, or a number.

        Raises:
            LossMissingError: for `None`.
            TypeError: for a loss that is not a real number.
            ValueError: for a loss that is not a scalar.
        """
        device = loss.device if isinstance(loss, Tensor) else self.emotion.scalar.device
        value = check_loss(loss, self.emotion.scalar.dtype, device)
        here = EmotionState(*(field.to(device) for field in self.emotion))
        self.emotion = feel(here, value, **self._averages, **self._bounds)

    @property
    def should_stop(self) -> bool:
        """Whether training has ever gone quiet; stays set. Waits for the device."""
        return bool(self.emotion.should_stop)

    @property
    def is_quiet(self) -> bool:
        """Whether training is quiet now, over the last 32 losses. Waits for the device."""
        return bool(went_quiet(self.emotion.history, self.emotion.felt, **self._bounds))

    def state_dict(self) -> dict[str, Tensor]:
        """Returns copies of the statistics of the losses, by name; the options are not in it."""
        return {name: field.clone() for name, field in self.emotion._asdict().items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads the statistics of another monitor, and continues from there.

        Args:
            state_dict: the result of `state_dict()`; it is not changed.

        Raises:
            ValueError: before anything is changed, if a part is missing or has another shape.
        """
        for name, field in self.emotion._asdict().items():
            saved = state_dict.get(name)
            if not isinstance(saved, Tensor) or saved.shape != field.shape:
                raise ValueError(
                    f"The state is not that of an EarlyStop: {name!r} must be a tensor of the shape "
                    f"{tuple(field.shape)}, and is {saved!r}"
                )
        self.emotion = EmotionState(
            **{
                name: state_dict[name].detach().to(dtype=field.dtype, copy=True)
                for name, field in self.emotion._asdict().items()
            }
        )

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value}" for name, value in {**self._averages, **self._bounds}.items())
        return f"EarlyStop({options})"
