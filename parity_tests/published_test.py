"""Runs of the published files go on here: the second half of a recording, from a published state."""

import collections
import io
import math
from typing import Any

import jax
import numpy as np
import pytest
import torch

import emo_optax
import emo_torch
from emo_optax._pieces.pulse_reference_test import Reference
from emo_shared.names import plain_name
from parity_tests.drive import OptaxDrive, TorchDrive
from parity_tests.family import FAMILY, Member
from parity_tests.recordings_test import LATER, RECORDINGS, load
from parity_tests.tolerances import RECORDING

MIDDLE = 24
"""The step after which a recorded run moves here."""
OF_V2 = ("EmoNavi", "EmoFact", "EmoLynx", "EmoSens", "EmoAiry", "EmoCats")
GENERATIONS = {"1g-v2.0": "", "2g-v2.0": "", "1g-v3.6.1": "36", "3g-v3.9.1": "3"}
CASES = [
    case
    for case in RECORDINGS
    if case["generation"] in GENERATIONS
    and (case["generation"] in LATER or case["optimizer"] in OF_V2)
    and case["dtype"] == "float64"
    and case["groups"] is None
]
Arrays = dict[str, np.ndarray]


def member_of(case: dict[str, Any]) -> Member:
    """Returns the member that takes the state of a recorded run."""
    ending = GENERATIONS[case["generation"]]
    name = case["optimizer"] + ("" if case["optimizer"] in ("EmoTion", "EmoVoid") else ending)
    return FAMILY[name]


def name_of(member: Member) -> str:
    """Returns the name of a member in the registries."""
    return next(name for name in emo_torch.list_optimizers() if plain_name(name) == plain_name(member.name))


class Before:
    """The published code's state after some steps, from recorded numbers and the published formulas."""

    def __init__(self, case: dict[str, Any], steps: int) -> None:
        recorded = load(case)
        self.recorded = recorded
        self.names = sorted(case["shapes"])  # The order in which the drives have them.
        self.losses = [float(loss) for loss in recorded["losses"]]
        self.grads = {name: recorded[f"grads/{name}"] for name in self.names}
        self.params = {name: recorded[f"params/{name}"] for name in self.names}
        self.kwargs = dict(case["kwargs"])
        self.steps = steps
        short, _, long = recorded["ema_short_medium_long"][steps - 1]
        self.ema = {"short": float(short), "long": float(long)}

    def group(self, **more: Any) -> dict[str, Any]:
        options = {"lr": 1e-3, "betas": (0.9, 0.995), "eps": 1e-8, "weight_decay": 0.01}
        given = {name: value for name, value in self.kwargs.items() if name in options}
        return {**options, **given, **more, "params": list(range(len(self.names)))}

    def of_v2(self, optimizer: str) -> dict[str, Any]:
        """Returns a state of v2.0."""
        is_lion = optimizer in ("EmoLynx", "EmoCats")
        group = self.group(betas=(0.9, 0.99) if is_lion else (0.9, 0.999))
        b1, b2 = group["betas"]
        state: dict[Any, Any] = {}
        for index, name in enumerate(self.names):
            own = self._moments_v2(optimizer, self.grads[name][: self.steps], b1, b2)
            state[index] = {key: torch.tensor(value) for key, value in own.items()}
            state[index]["ema"] = dict(self.ema)
        scalars = []
        has_shadow = self.kwargs.get("use_shadow", optimizer in ("EmoNavi", "EmoFact", "EmoLynx"))
        short = long = self.losses[0]
        for step in range(self.steps):
            short = 0.3 * self.losses[step] + 0.7 * short
            long = 0.01 * self.losses[step] + 0.99 * long
            scalar = math.tanh(5 * (short - long))
            scalars += [scalar] * len(self.names)
            size = abs(scalar)
            for index, name in enumerate(self.names) if has_shadow and size > 0.1 else ():
                param = torch.tensor(self.params[name][step])
                if "shadow" in state[index]:
                    shadow = state[index]["shadow"]
                    param = (1 - size) * param + size * shadow
                    state[index]["shadow"] = shadow + 0.05 * (param - shadow)
                else:
                    state[index]["shadow"] = param
        state["scalar_hist"] = scalars[-32:]
        return {"state": state, "param_groups": [group]}

    def _moments_v2(self, optimizer: str, grads: np.ndarray, b1: float, b2: float) -> Arrays:
        first: Any = 0.0
        second: Any = 0.0
        if optimizer in ("EmoFact", "EmoAiry") and grads[0].ndim >= 2:
            for grad in grads:
                rows = np.mean(grad**2, axis=tuple(range(1, grad.ndim)), keepdims=True) + 1e-8
                columns = np.mean(grad**2, axis=0, keepdims=True) + 1e-8
                first = b1 * first + (1 - b1) * np.sqrt(rows)
                second = b1 * second + (1 - b1) * np.sqrt(columns)
            return {"exp_avg_r": first, "exp_avg_c": second}
        is_lion = optimizer in ("EmoLynx", "EmoCats")
        decay = b2 if is_lion else b1
        for grad in grads:
            first = decay * first + (1 - decay) * grad
            second = b2 * second + (1 - b2) * grad**2
        return {"exp_avg": first} if is_lion else {"exp_avg": first, "exp_avg_sq": second}

    def of_later(self, member: Member) -> dict[str, Any]:
        """Returns a state of v3.6.1 or v3.9.1."""
        name, is_third = name_of(member), member.memory == "pulse"
        reference = Reference(
            name,
            {each: param[0] for each, param in self.params.items()},
            1.0 if is_third else 1e-3,
            use_shadow=self.kwargs["use_shadow"],
        )
        for step in range(self.steps):
            reference.step({each: grad[step] for each, grad in self.grads.items()}, self.losses[step])
        memory = reference.memory
        state: dict[Any, Any] = {
            index: self._own(reference, member.name, each) for index, each in enumerate(self.names)
        }
        state["ema"] = {"short": memory.short, "medium": memory.medium, "long": memory.long}
        if not is_third:
            state["scalar_hist"] = collections.deque(memory.scalars[-32:], maxlen=32)
            return {"state": state, "param_groups": [self.group()]}
        internal: dict[str, Any] = {
            "emoScope": 1.0,
            "dNR_hist": memory.h,
            "noise_est": memory.n,
            "d_est": memory.q,
            "c_est": memory.k,
            "should_stop": memory.should_stop,
            "stopcoef": 0.04,
        }
        if reference.norm is not None:
            internal |= {"prev_gl1": torch.tensor(reference.norm, dtype=torch.float64), "g_freshness": 1.0}
        if member.name == "EmoVoid":
            del internal["g_freshness"]
            internal["_step_count"] = reference.counter
        groups = [self.group(lr=memory.pulse)]
        return {"state": state, "param_groups": groups, "emo_internal": internal}

    def _own(self, reference: Reference, member: str, name: str) -> dict[str, torch.Tensor]:
        moments = {"exp_avg": reference.m[name], "exp_avg_sq": reference.v[name]}
        if member in ("EmoLynx36", "EmoCats3", "EmoTion"):
            del moments["exp_avg_sq"]
        if member in ("EmoFact36", "EmoAiry3"):
            is_vector = reference.v[name].ndim < 2
            moments = {"exp_avg_sq" if is_vector else "exp_avg_r": np.ones(1)}  # Not read.
        if member == "EmoVoid":
            moments = {}
        shadow = {"shadow": reference.shadow[name]} if name in reference.shadow else {}
        return {key: torch.tensor(value) for key, value in {**moments, **shadow}.items()}


def published_of(case: dict[str, Any], steps: int = MIDDLE) -> tuple[Before, dict[str, Any]]:
    """Returns the numbers of a recorded run, and the published state in its middle."""
    before = Before(case, steps)
    is_v2 = case["generation"] not in LATER
    return before, before.of_v2(case["optimizer"]) if is_v2 else before.of_later(member_of(case))


def plain(value: Any) -> Any:
    """Returns a published state with NumPy arrays in the place of tensors."""
    if isinstance(value, torch.Tensor):
        return value.numpy()
    return {key: plain(each) for key, each in value.items()} if isinstance(value, dict) else value


def as_list(items: Any = (), maxlen: int | None = None) -> list[Any]:
    """Returns a list: `torch.load` fills no deque, even where a deque is allowed."""
    del maxlen
    return list(items)


def through_a_file(published: dict[str, Any]) -> Any:
    """Returns the result of `torch.load` for a published state, read as in docs/from_published.md."""
    file = io.BytesIO()
    torch.save(published, file)
    file.seek(0)
    with torch.serialization.safe_globals([(as_list, "collections.deque")]):
        return torch.load(file, weights_only=True)


class MovedToTorch(TorchDrive):
    """A published run that goes on in PyTorch."""

    def take(self, published: dict[str, Any], member: Member, names: list[str]) -> tuple[str, ...]:
        """Loads a published state."""
        del member, names
        return emo_torch.load_published_state(self.optimizer, through_a_file(published))


class MovedToOptax(OptaxDrive):
    """A published run that goes on in Optax."""

    def take(self, published: dict[str, Any], member: Member, names: list[str]) -> tuple[str, ...]:
        """Loads a published state."""
        self._state, notes = emo_optax.load_published_state(
            self._state, plain(published), self._params, names, name_of(member)
        )
        assert notes[-1].startswith("The options of")
        return notes[:-1]


@pytest.mark.parametrize("side", [MovedToTorch, MovedToOptax], ids=["torch", "optax"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["file"].removesuffix(".npz"))
def test_a_recorded_run_goes_on_from_its_middle(case: dict[str, Any], side: Any) -> None:
    before, published = published_of(case)
    member = member_of(case)
    options = {name: value for name, value in before.kwargs.items() if name not in member.lacks}
    with jax.enable_x64(True):
        params = {name: before.params[name][MIDDLE] for name in before.names}
        drive = side(member, params, options)
        notes = drive.take(published, member, before.names)
        window = "window of the stop signal"
        assert all(window in note for note in notes), notes
        assert bool(notes) == (case["generation"] not in LATER and len(before.names) > 1)
        tolerance = RECORDING["float64"]
        recorded = before.recorded
        for step in range(MIDDLE, case["steps"]):
            drive.step({name: grad[step] for name, grad in before.grads.items()}, before.losses[step])
            for name, param in drive.params().items():
                expected = before.params[name][step + 1]
                np.testing.assert_allclose(
                    param, expected, rtol=0.0, atol=tolerance.absolute, err_msg=f"{step}"
                )
            state = drive.state()
            if case["generation"].startswith("3g"):
                assert bool(state["pulse/should_stop"]) == bool(recorded["should_stop"][step])
                np.testing.assert_allclose(state["pulse/pulse"], recorded["lr"][step], rtol=1e-10)
            elif case["loss_kind"] == "quiet":
                assert bool(state["emotion/should_stop"]) == bool(recorded["should_stop"][step])
