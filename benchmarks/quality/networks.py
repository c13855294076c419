"""Small networks as plain functions of their parameters, so that many of them train in one program."""

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

Params = dict[str, Any]


def dense(key: jax.Array, inputs: int, outputs: int) -> Params:
    """Returns the parameters of a linear layer, uniform within one over the root of its inputs."""
    bound = inputs**-0.5
    first, second = jax.random.split(key)
    return {
        "weight": jax.random.uniform(first, (inputs, outputs), minval=-bound, maxval=bound),
        "bias": jax.random.uniform(second, (outputs,), minval=-bound, maxval=bound),
    }


def apply(layer: Params, inputs: jax.Array) -> jax.Array:
    """Returns the outputs of a linear layer, shape `[..., outputs]`."""
    outputs: jax.Array = inputs @ layer["weight"] + layer["bias"]
    if "down" in layer:  # An adapter of low rank beside the layer.
        outputs = outputs + inputs @ layer["down"] @ layer["up"]
    return outputs


def perceptron(key: jax.Array, sizes: Sequence[int]) -> list[Params]:
    """Returns the parameters of linear layers behind each other."""
    keys = jax.random.split(key, len(sizes) - 1)
    return [dense(key, *pair) for key, pair in zip(keys, itertools.pairwise(sizes), strict=True)]


def run(layers: list[Params], inputs: jax.Array, between: Any = jax.nn.relu) -> jax.Array:
    """Returns the outputs of linear layers with a function between them."""
    for layer in layers[:-1]:
        inputs = between(apply(layer, inputs))
    return apply(layers[-1], inputs)


def patches(images: jax.Array, stride: int) -> jax.Array:
    """Returns the 3 by 3 neighbourhood of pixels `[batch, h, w, c]`, as `[batch, h', w', 9 c]`."""
    height, width = images.shape[1:3]
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return jnp.concatenate(
        [padded[:, i : i + height : stride, j : j + width : stride] for i in range(3) for j in range(3)],
        axis=-1,
    )


def convolutions(key: jax.Array) -> list[Params]:
    """Returns the parameters of two convolutions and a linear layer."""
    keys = jax.random.split(key, 3)
    return [dense(keys[0], 9, 8), dense(keys[1], 72, 16), dense(keys[2], 256, 10)]


def run_convolutions(layers: list[Params], images: jax.Array) -> jax.Array:
    """Returns the scores of images `[batch, 8, 8]`."""
    flow = jax.nn.relu(apply(layers[0], patches(images[..., None], 1)))
    flow = jax.nn.relu(apply(layers[1], patches(flow, 2)))
    return apply(layers[2], flow.reshape(len(images), -1))


def normalised(key: jax.Array) -> list[Params]:
    """Returns the parameters of a perceptron with two layers of batch normalisation."""
    layers = perceptron(key, (64, 48, 48, 10))
    for layer in layers[:-1]:
        layer["scale"], layer["shift"] = jnp.ones(48), jnp.zeros(48)
    return layers


def run_normalised(layers: list[Params], inputs: jax.Array) -> jax.Array:
    """Returns the scores; the statistics are the statistics of the batch."""
    for layer in layers[:-1]:
        flow = apply(layer, inputs)
        centred = flow - flow.mean(0)
        scaled = centred * jax.lax.rsqrt(jnp.square(centred).mean(0) + 1e-5)
        inputs = jax.nn.relu(scaled * layer["scale"] + layer["shift"])
    return apply(layers[-1], inputs)


def recurrent(key: jax.Array, inputs: int = 8, outputs: int = 10) -> Params:
    """Returns the parameters of a gated recurrent network of 32 cells over rows of numbers."""
    keys = jax.random.split(key, 3)
    return {
        "inputs": dense(keys[0], inputs, 96),
        "cells": dense(keys[1], 32, 96),
        "scores": dense(keys[2], 32, outputs),
    }


def run_recurrent(params: Params, images: jax.Array) -> jax.Array:
    """Returns the scores of images `[batch, rows, columns]`, read row by row."""
    hidden = jnp.zeros((len(images), 32))
    for row in range(images.shape[1]):
        seen = jnp.split(apply(params["inputs"], images[:, row]), 3, axis=-1)
        kept = jnp.split(apply(params["cells"], hidden), 3, axis=-1)
        reset, update = jax.nn.sigmoid(seen[0] + kept[0]), jax.nn.sigmoid(seen[1] + kept[1])
        new = jnp.tanh(seen[2] + reset * kept[2])
        hidden = new + update * (hidden - new)
    return apply(params["scores"], hidden)


def transformer(key: jax.Array, kinds: int, length: int, width: int = 32, depth: int = 1) -> Params:
    """Returns the parameters of a transformer over characters."""
    keys = jax.random.split(key, 3 + 4 * depth)
    blocks = [
        {
            "first": {"scale": jnp.ones(width), "shift": jnp.zeros(width)},
            "attend": dense(keys[3 + 4 * index], width, 3 * width),
            "attended": dense(keys[4 + 4 * index], width, width),
            "second": {"scale": jnp.ones(width), "shift": jnp.zeros(width)},
            "hidden": dense(keys[5 + 4 * index], width, 4 * width),
            "output": dense(keys[6 + 4 * index], 4 * width, width),
        }
        for index in range(depth)
    ]
    return {
        "characters": jax.random.normal(keys[0], (kinds, width)),
        "places": jax.random.normal(keys[1], (length, width)),
        "blocks": blocks,
        "last": {"scale": jnp.ones(width), "shift": jnp.zeros(width)},
        "scores": dense(keys[2], width, kinds),
    }


def layer_norm(params: Params, flow: jax.Array) -> jax.Array:
    """Returns each row with mean 0 and variance 1, scaled and shifted."""
    centred = flow - flow.mean(-1, keepdims=True)
    scaled = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-5)
    outputs: jax.Array = scaled * params["scale"] + params["shift"]
    return outputs


def block(params: Params, flow: jax.Array, heads: int, *, is_causal: bool) -> jax.Array:
    """Returns a flow `[batch, length, width]` after attention and a hidden layer."""
    batch, length, width = flow.shape
    mixed = apply(params["attend"], layer_norm(params["first"], flow))
    query, key, value = jnp.moveaxis(mixed.reshape(batch, length, 3, heads, -1), 2, 0)
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) * (width // heads) ** -0.5
    if is_causal:
        scores = jnp.where(jnp.tril(jnp.ones((length, length), bool)), scores, -1e9)
    seen = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), value).reshape(batch, length, width)
    flow = flow + apply(params["attended"], seen)
    hidden = jax.nn.gelu(apply(params["hidden"], layer_norm(params["second"], flow)))
    return flow + apply(params["output"], hidden)


def run_transformer(params: Params, characters: jax.Array, heads: int = 4) -> jax.Array:
    """Returns the scores of the next characters, shape `[batch, length, kinds]`."""
    flow = params["characters"][characters] + params["places"][: characters.shape[1]]
    for each in params["blocks"]:
        flow = block(each, flow, heads, is_causal=True)
    return apply(params["scores"], layer_norm(params["last"], flow))


def adapters(key: jax.Array, params: Any, rank: int = 4) -> Any:
    """Returns low-rank adapters for the linear layers of a transformer: trees with `down` and `up`."""
    keys = iter(jax.random.split(key, 4 * len(params["blocks"]) + 1))

    def beside(layer: Params) -> Params:
        inputs, outputs = layer["weight"].shape
        down = jax.random.normal(next(keys), (inputs, rank)) / inputs**0.5
        return {"down": down, "up": jnp.zeros((rank, outputs))}

    names = ("attend", "attended", "hidden", "output")
    blocks = [{name: beside(each[name]) for name in names} for each in params["blocks"]]
    return {"blocks": blocks, "scores": beside(params["scores"])}


def join(frozen: Any, beside: Any) -> Any:
    """Returns the parameters of a network together with the parameters of its adapters."""
    if isinstance(frozen, dict):
        joined = {
            name: join(value, beside.get(name)) if beside else value for name, value in frozen.items()
        }
        return joined | {name: value for name, value in (beside or {}).items() if name not in frozen}
    if isinstance(frozen, list) and beside:
        return [join(*pair) for pair in zip(frozen, beside, strict=True)]
    return frozen


def patch_transformer(key: jax.Array) -> Params:
    """Returns the parameters of a transformer over the sixteen patches of an image."""
    keys = jax.random.split(key, 3)
    body = transformer(keys[0], 10, 16, depth=2)
    del body["characters"]
    return body | {"embed": dense(keys[1], 4, 32), "places": 0.02 * jax.random.normal(keys[2], (16, 32))}


def run_patch_transformer(params: Params, images: jax.Array) -> jax.Array:
    """Returns the scores of images `[batch, 8, 8]`."""
    cut = images.reshape(-1, 4, 2, 4, 2).swapaxes(2, 3).reshape(-1, 16, 4)
    flow = apply(params["embed"], cut) + params["places"]
    for each in params["blocks"]:
        flow = block(each, flow, 4, is_causal=False)
    return apply(params["scores"], layer_norm(params["last"], flow).mean(1))
