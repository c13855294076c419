"""The options of a published state, the notes about it, and the states that are refused."""

import collections
import copy
import math
import pickle
import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch

import emo_optax
import emo_torch
from parity_tests.family import FAMILY
from parity_tests.published_test import plain

PAGE = Path(__file__).parents[1] / "docs" / "from_published.md"


def fresh(member: str = "EmoSens3", **options: Any) -> tuple[Any, list[torch.nn.Parameter]]:
    """Returns an optimizer over two parameters."""
    params = [torch.nn.Parameter(torch.ones(2, 3)), torch.nn.Parameter(torch.ones(3))]
    return FAMILY[member].torch(params, **options), params


def made(version: str, moments: tuple[str, ...] = ("exp_avg", "exp_avg_sq"), **more: Any) -> dict[str, Any]:
    """Returns a published state of a version, of two parameters."""
    shapes = ((2, 3), (3,))
    state: dict[Any, Any] = {
        index: {**{name: torch.full(shape, 0.25) for name in moments}, **more}
        for index, shape in enumerate(shapes)
    }
    group = {"params": [0, 1], "lr": 5e-4, "betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.2}
    published: dict[str, Any] = {"state": state, "param_groups": [group]}
    if version == "v2.0":
        for own in list(state.values()):
            own["ema"] = {"short": 1.0, "long": 1.5}
        state["scalar_hist"] = [0.0] * 32
        return published
    state["ema"] = {"short": 1.0, "medium": 1.2, "long": 1.5}
    if version == "v3.9.1":
        internal = {"emoScope": 2.0, "dNR_hist": 1.5, "noise_est": 0.3, "d_est": 0.7, "c_est": 0.1}
        published["emo_internal"] = {**internal, "should_stop": True, "stopcoef": 0.07}
    return published


def test_the_options_of_the_state_become_those_of_the_optimizer() -> None:
    optimizer, _ = fresh(lr=torch.tensor(3.0))
    published = made("v3.9.1")
    kept = copy.deepcopy(published)
    assert emo_torch.load_published_state(optimizer, published) == ()
    assert str(published) == str(kept)
    group = optimizer.param_groups[0]
    assert float(group["lr"]) == 2.0  # The scope, and not the last pulse.
    assert isinstance(group["lr"], torch.Tensor)
    assert (group["betas"], group["eps"], group["weight_decay"], group["stopcoef"]) == (
        (0.8, 0.9),
        1e-6,
        0.2,
        0.07,
    )
    assert optimizer.should_stop
    assert float(optimizer.pulse.pulse) == pytest.approx(1.5 * 2.0 * 100**0.1 * 1e-4)
    void, _ = fresh("EmoVoid")
    published = made("v3.9.1", ())
    published["emo_internal"] |= {"prev_gl1": None, "_step_count": 400}
    emo_torch.load_published_state(void, published)
    assert void.param_groups[0]["weight_decay"] == 0.0  # The published code has none, whatever it is given.
    assert int(void.norm_tensors()["counter"]) == 56


def test_notes_say_what_could_not_be_carried_over() -> None:
    optimizer, params = fresh("EmoVoid", loss_unit="first")
    params[1].requires_grad_(False)
    published = made("v3.9.1", (), shadow=torch.zeros(2, 3))
    published["state"][1] = {}
    published["emo_internal"] |= {"prev_gl1": torch.tensor(3.0), "_step_count": 7}
    del published["emo_internal"]["c_est"]
    notes = emo_torch.load_published_state(optimizer, published)
    said = ("c_est", "prev_gl1", "use_shadow", "loss_unit")
    assert [any(word in note for note in notes) for word in said] == [True] * 4, notes
    assert float(optimizer.norm_tensors()["kept"]) == -1.0
    optimizer, _ = fresh("EmoSens")
    published = made("v2.0")
    published["state"][1]["ema"] = {"short": 9.0, "long": 9.5}
    published["state"]["scalar_hist"] = [0.0] * 3
    notes = emo_torch.load_published_state(optimizer, published)
    assert ["parameter 1" in note for note in notes] == [True, False]
    assert "1 whole steps" in notes[1]
    assert float(optimizer.emotion.short) == 1.0
    optimizer, params = fresh("EmoNavi36", use_shadow=True)
    published = made("v3.6.1")
    published["state"][0]["shadow"] = torch.full((2, 3), 0.5)
    published["state"][1] = {}
    published["param_groups"][0] |= {"weight_decouple": False, "fixed_decay": False, "use_shadow": True}
    notes = emo_torch.load_published_state(optimizer, published)
    said = (
        "nothing for parameter 1",
        "window of scalars",
        "before the shadow pulls",
        "weight_decay_mode='l2'",
    )
    assert [any(word in note for note in notes) for word in said] == [True] * 4, notes
    # A parameter without a shadow is its own shadow, and is not pulled to 0.
    assert torch.equal(optimizer.state[params[1]]["shadow"], params[1])


@pytest.mark.parametrize(
    ("member", "version", "what"),
    [
        ("EmoSens", "v3.9.1", "third generation"),
        ("EmoSens3", "v2.0", "every parameter has its own 'ema'"),
        ("EmoNavi36", "v2.0", "EmoNavi, EmoFact, EmoLynx"),
        ("EmoNavi", "v3.6.1", "EmoNavi36"),
        ("EmoCats3", "v3.9.1", "has no exp_avg_sq"),
        ("EmoClan", "v2.0", "emo_clan cannot load a published state"),
    ],
)
def test_a_state_of_another_version_is_an_error(member: str, version: str, what: str) -> None:
    optimizer, _ = fresh(member)
    with pytest.raises(ValueError, match=what):
        emo_torch.load_published_state(optimizer, made(version))


def _damage(published: dict[str, Any], place: str) -> None:
    if place == "shape":
        published["state"][0]["exp_avg"] = torch.ones(3, 2)
    elif place == "moment":
        del published["state"][1]["exp_avg_sq"]
    elif place == "whole":
        published["state"][1]["exp_avg"] = torch.ones(3, dtype=torch.int64)
    elif place == "average":
        published["state"]["ema"]["long"] = float("nan")
    elif place == "medium":
        published["state"]["ema"] = {"short": 1.0, "long": 2.0}
    elif place == "internal":
        del published["emo_internal"]["dNR_hist"]
    elif place == "groups":
        published["param_groups"] = [{"params": [0]}, {"params": [1]}]
    elif place == "count":
        published["param_groups"][0]["params"] = [0]
    elif place == "lr":
        published["emo_internal"]["emoScope"] = -1.0
    elif place == "ema":
        del published["state"]["ema"]
    elif place == "negative":
        published["state"][0]["exp_avg_sq"] = -torch.ones(2, 3)
    elif place == "not finite":
        published["state"][0]["exp_avg"] = torch.full((2, 3), math.nan)
    elif place == "no state":
        published["state"][0] = None
    elif place == "beyond":
        published["state"][7] = published["state"][0]
    elif place == "betas":
        published["param_groups"][0]["betas"] = None
    elif place == "params":
        published["param_groups"] = [3]
    elif place == "word":
        published["emo_internal"]["should_stop"] = "no"
    elif place == "meta":
        published["state"][0]["exp_avg"] = torch.ones(2, 3, device="meta")
    elif place == "too large":
        published["state"][0]["exp_avg_sq"] = torch.full((2, 3), 1e300, dtype=torch.float64)
    elif place == "text":
        published["state"]["ema"]["short"] = "x"
    else:
        del published["state"]


@pytest.mark.parametrize(
    ("place", "what"),
    [
        ("shape", "'exp_avg' of 'parameter 0' is"),
        ("moment", "has no 'exp_avg_sq'"),
        ("whole", "int64"),
        ("average", "'long'"),
        ("medium", "must be a mapping with short, medium, long"),
        ("internal", "dNR_hist"),
        ("groups", "groups of"),
        ("count", "1 parameters"),
        ("lr", "learning rate"),
        ("ema", "no 'ema'"),
        ("negative", "'exp_avg_sq' of 'parameter 0' has negative"),
        ("not finite", "'exp_avg' of 'parameter 0' has numbers that are not finite"),
        ("no state", "parameter 0 is None"),
        ("beyond", r"parameters \[7\]"),
        ("betas", "'betas' is None"),
        ("params", "a list of 'params'"),
        ("word", "'should_stop' is 'no'"),
        ("meta", "no values"),
        ("too large", "'exp_avg_sq' of 'parameter 0' has a number that float32 cannot hold"),
        ("text", r"\['short'\] is 'x', where a finite number is needed"),
        ("state", "not a state_dict"),
    ],
)
def test_a_damaged_state_is_an_error_before_anything_has_changed(place: str, what: str) -> None:
    optimizer, params = fresh(use_shadow=True)
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step(loss=1.0)
    before = str(optimizer.state_dict())
    published = made("v3.9.1", shadow=torch.ones(()))
    for index, shape in enumerate(((2, 3), (3,))):
        published["state"][index]["shadow"] = torch.ones(shape)
    assert emo_torch.load_published_state(fresh(use_shadow=True)[0], published) == ()
    _damage(published, place)
    with pytest.raises(ValueError, match=what):
        emo_torch.load_published_state(optimizer, published)
    assert str(optimizer.state_dict()) == before
    with pytest.raises(TypeError, match="state_dict"):
        emo_torch.load_published_state(optimizer, [])  # type: ignore[arg-type]


def test_an_optimizer_that_has_taken_steps_is_refused() -> None:
    optimizer, params = fresh()
    published = made("v3.9.1")
    emo_torch.load_published_state(optimizer, published)
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step(loss=1.0)
    before = str(optimizer.state_dict())
    with pytest.raises(ValueError, match="has taken steps"):
        emo_torch.load_published_state(optimizer, published)
    assert str(optimizer.state_dict()) == before


def test_a_course_too_large_for_a_number_is_limited() -> None:
    optimizer, _ = fresh()
    published = made("v3.9.1")
    published["emo_internal"]["c_est"] = 1000.0
    emo_torch.load_published_state(optimizer, published)
    assert math.isfinite(optimizer.named_memory()["pulse/pulse"].item())


def test_schedules_of_optax_go_on_at_the_step_that_is_given() -> None:
    rates: list[Any] = []

    def schedule(count: Any) -> float:
        rates.append(count)
        return 1e-3

    optimizer = emo_optax.emo_sens(schedule)
    params = {"a": np.ones((2, 3), np.float32), "b": np.ones(3, np.float32)}
    published = plain(made("v2.0"))
    for steps in (0, 70):
        state, notes = emo_optax.load_published_state(
            optimizer.init(params), published, params, ["a", "b"], "emo_sens", steps=steps
        )
        assert "emo_sens(b1=0.8, b2=0.9, eps=1e-06, learning_rate=0.0005, weight_decay=0.2)" in notes[-1]
        optimizer.update(params, state, params, value=1.0)
        assert int(rates[-1]) == steps
    with pytest.raises(ValueError, match="names must be the names of the parameters"):
        emo_optax.load_published_state(state, published, params, ["a", "c"], "emo_sens")


def test_the_code_of_the_page_reads_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert len(blocks) == 2
    published = made("v3.6.1")
    published["state"]["scalar_hist"] = collections.deque([0.25] * 20, maxlen=32)
    published["state"][1] = {name: torch.zeros(2) for name in ("exp_avg", "exp_avg_sq")}
    torch.save(published, tmp_path / "optimizer.pt")
    (tmp_path / "optimizer.pkl").write_bytes(pickle.dumps(plain(published)))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(blocks[0], names)
    assert int(names["optimizer"].drive.felt) == 20
    exec(blocks[1], names)
    arrays = emo_optax.to_arrays(names["state"])
    assert int(arrays["emotion/felt"]) == 20
    np.testing.assert_array_equal(arrays["exp_avg/weight"], np.full((2, 3), 0.25))


@pytest.mark.parametrize("window", [None, 5, "x", b"x", {}, [2.0], ["x"], [None]])
def test_a_damaged_window_is_an_error(window: Any) -> None:
    published = made("v2.0")
    published["state"]["scalar_hist"] = window
    with pytest.raises(ValueError, match="'scalar_hist'"):
        emo_torch.load_published_state(fresh("EmoSens")[0], published)


def _load_in_jax(member: Any, named: str, **options: Any) -> Any:
    published = made("v2.0")
    for own in (published["state"][index] for index in range(2)):
        own |= {name: own[name].numpy() for name in ("exp_avg", "exp_avg_sq")}
    params = {"w": jnp.ones((2, 3)), "v": jnp.ones(3)}
    state = member.init(options.pop("made_for", params))
    names = options.pop("names", ["w", "v"])
    return emo_optax.load_published_state(state, published, params, names, named, **options)


@pytest.mark.parametrize("member", ["emo_sens3", "emo_cats", "emo_pilot", "emo_navi36", "emo_airy"])
def test_in_jax_the_new_state_must_be_a_state_of_the_member(member: str) -> None:
    with pytest.raises(ValueError, match="not a state of emo_sens: make the optimizer emo_sens"):
        _load_in_jax(emo_optax.create_optimizer(member), "emo_sens")
    for own in ("emo_sens", "emo_navi"):  # These two have the same rule and the same state.
        loaded, _ = _load_in_jax(emo_optax.create_optimizer(own), "emo_sens")
        assert float(emo_optax.get_emotion(loaded).long) == 1.5


@pytest.mark.parametrize(
    ("options", "error", "what"),
    [
        ({"steps": -1}, ValueError, "Invalid steps: -1"),
        ({"steps": 2**31}, ValueError, "below 2"),
        ({"steps": 2.5}, TypeError, "whole number"),
        ({"steps": None}, TypeError, "whole number"),
        ({"names": ["w", None]}, ValueError, "names of the parameters"),
        ({"made_for": {"w": jnp.ones((3, 2)), "v": jnp.ones(3)}}, ValueError, "made for other parameters"),
    ],
)
def test_in_jax_bad_arguments_are_refused(options: Any, error: Any, what: str) -> None:
    with pytest.raises(error, match=what):
        _load_in_jax(emo_optax.emo_sens(), "emo_sens", **options)


def test_moments_of_bfloat16_are_read() -> None:
    published = made("v2.0")
    for own in (published["state"][index] for index in range(2)):
        own |= {name: np.asarray(jnp.asarray(own[name].numpy(), jnp.bfloat16)) for name in ("exp_avg",)}
        own["exp_avg_sq"] = own["exp_avg_sq"].numpy()
    params = {"w": jnp.ones((2, 3)), "v": jnp.ones(3)}
    state = emo_optax.emo_sens().init(params)
    state, _ = emo_optax.load_published_state(state, published, params, ["w", "v"], "emo_sens")
    np.testing.assert_array_equal(emo_optax.to_arrays(state)["exp_avg/v"], np.full(3, 0.25))
