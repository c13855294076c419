"""The kernels of `cuda.py`, in Triton: one launch of a kernel works on many tensors.

One table has the address of each tensor. Other tables have, for each program, its tensor and its first
element. The numbers are the same as from `single_tensor` in ../_step/ways.py: the same operations in the
same order. All numbers that can change between steps are read from the device's memory, so that the replay
of a captured graph reads the new ones. Loops are `while`: in some versions of Triton, the interpreter takes
no `range` up to a loaded number.
"""

# Annotations are not evaluated, so that this module can be imported without Triton.
from __future__ import annotations

from typing import Any

from emo_torch._kernels.cuda_codes import encode, jit, loaded

try:
    import triton.language as tl
except ImportError:  # `cuda.is_available` returns False.
    tl = None


def _constants(count: int) -> tuple[Any, ...]:
    """Returns the numbers from 0 in the type that Triton requires for global numbers in a kernel."""
    return tuple(number if tl is None else tl.constexpr(number) for number in range(count))


# In the order of RULES in cuda.py; the kernel takes every other number for the rule "softsign".
ADAM, LION, CAUTIOUS, _, FACTORS, SIGN, FRESH = _constants(7)
# In the order of MODES in ../_pieces/weight_decay.py.
DECOUPLED, ABSOLUTE, L2 = _constants(3)
# The number 0 keeps all elements.
_, KEEP_ELEMENTS, KEEP_ROWS_AND_COLUMNS, KEEP_VECTORS = _constants(4)


@jit
def blended(weight, shadow, exists, ratio):  # type: ignore[no-untyped-def]
    """Returns a weight pulled to its shadow; the weight itself if there is no shadow."""
    pulled = weight * (1.0 - ratio) + shadow * ratio
    return tl.where(exists & (ratio > 0.0), pulled, weight)


@jit
def sign_of(value):  # type: ignore[no-untyped-def]
    """Returns -1, 0 or 1 in a value's dtype."""
    return (value > 0.0).to(value.dtype) - (value < 0.0).to(value.dtype)


@jit
def rounded(value, KIND: tl.constexpr):  # type: ignore[no-untyped-def]
    """Returns a value rounded to the nearest of another dtype; Triton's interpreter would truncate."""
    if tl.bfloat16 == KIND:
        value = value.to(tl.float32)
        bits = value.to(tl.int32, bitcast=True)
        nearest = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000).to(tl.float32, bitcast=True)
        value = tl.where(value == value, nearest, value)
    return value.to(KIND)


@jit
def keep(  # type: ignore[no-untyped-def]
    at,
    scale_at,
    offsets,
    mask,
    value,
    numbers,
    least,
    SQUARES: tl.constexpr,
    IS_BESIDE: tl.constexpr,
    KIND: tl.constexpr,
):
    """Stores moments: rounded, or as codes. The arguments are those of `encode`."""
    if tl.uint8 == KIND:
        encode(at, scale_at, offsets, mask, value, numbers, least, SQUARES, IS_BESIDE)
    else:
        tl.store(at + offsets, rounded(value, KIND), mask=mask)


@jit
def elements(  # type: ignore[no-untyped-def]
    params,
    grads,
    firsts,
    seconds,
    shadows,
    exists,
    tensor_of,
    start_of,
    sizes,
    columns,
    row_starts,
    row_means,
    column_starts,
    column_means,
    norms,
    constants,
    tolerance,
    scale,
    ratio,
    lr,
    weights,
    share,
    follow,
    chosen,
    chosen_first,
    first_scales,
    second_scales,
    numbers,
    least,
    INDEX: tl.constexpr,
    STEPS_FIRST: tl.constexpr,
    RULE: tl.constexpr,
    MODE: tl.constexpr,
    FILTER: tl.constexpr,
    SCALES: tl.constexpr,
    BLENDS: tl.constexpr,
    TRUSTS: tl.constexpr,
    WEIGHS: tl.constexpr,
    PARAM: tl.constexpr,
    GRAD: tl.constexpr,
    FIRST: tl.constexpr,
    SECOND: tl.constexpr,
    SHADOW: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Takes the step of a block of elements, after the kernels of the sums over the tensor."""
    block = tl.program_id(0)
    tensor = tl.load(tensor_of + block)
    start = tl.load(start_of + block)
    offsets = start + tl.arange(0, BLOCK)
    # A rule that is not chosen moves nothing.
    mask = offsets < tl.where(tl.load(chosen) == INDEX, tl.load(sizes + tensor), 0)
    params_at = tl.load(params + tensor).to(tl.pointer_type(PARAM)) + offsets
    grads_at = tl.load(grads + tensor).to(tl.pointer_type(GRAD)) + offsets
    firsts_at = tl.load(firsts + tensor).to(tl.pointer_type(FIRST))
    seconds_at = tl.load(seconds + tensor).to(tl.pointer_type(SECOND))
    first_scale = tl.load(first_scales + tensor).to(tl.pointer_type(tl.float32)) + start // BLOCK
    second_scale = tl.load(second_scales + tensor).to(tl.pointer_type(tl.float32)) + start // BLOCK
    weight_decay = tl.load(constants + 1).to(WIDE)
    b1, c1 = tl.load(constants + 3).to(WIDE), tl.load(constants + 4).to(WIDE)
    b2, c2 = tl.load(constants + 5).to(WIDE), tl.load(constants + 6).to(WIDE)
    eps = tl.load(constants + 7).to(WIDE)

    before = tl.load(params_at, mask=mask, other=0.0).to(WIDE)
    weight = before
    if WEIGHS:
        weight *= tl.load(weights)
    if BLENDS:
        shadows_at = tl.load(shadows + tensor).to(tl.pointer_type(SHADOW)) + offsets
        shadow = tl.load(shadows_at, mask=mask, other=0.0).to(WIDE)
        is_there = tl.load(tl.load(exists + tensor).to(tl.pointer_type(tl.int8))) != 0
        pull = tl.load(ratio)
        if TRUSTS:
            followed = tl.where(is_there, shadow + tl.load(follow) * (weight - shadow), weight)
            # Where the shadow pulls, it does not move: the weight may read the new shadow.
            weight = tl.where(is_there, (1.0 - pull) * weight + pull * followed, weight)
            tl.store(shadows_at, followed.to(SHADOW), mask=mask)
        else:
            weight = blended(weight, shadow, is_there, pull)
            moved = shadow + tl.load(constants + 2).to(WIDE) * (weight - shadow)
            followed = tl.where(is_there, moved, weight)
            tl.store(shadows_at, tl.where(pull > 0.0, followed, shadow).to(SHADOW), mask=mask)
    grad = tl.load(grads_at, mask=mask, other=0.0).to(WIDE) * tl.load(constants).to(WIDE)
    if MODE == L2:
        grad += weight_decay * weight

    if STEPS_FIRST:
        mixed = grad * c1
        softened = mixed / (1.0 + tl.abs(mixed)) * (tl.load(norms + tensor) + eps)
        cautious = tl.where(sign_of(mixed) == sign_of(grad), sign_of(mixed), 0.0)
        kind = tl.load(chosen_first)
        weight -= tl.where(kind == 1, softened, tl.where(kind == 2, cautious, 0.0)) * tl.load(lr)
    if RULE == ADAM:
        first = loaded(firsts_at, first_scale, offsets, mask, numbers, 0, FIRST, WIDE)
        second = loaded(seconds_at, second_scale, offsets, mask, numbers, 1, SECOND, WIDE)
        first = first * b1 + grad * c1
        second = second * b2 + grad * grad * c2
        keep(firsts_at, first_scale, offsets, mask, first, numbers, least, 0, True, FIRST)
        keep(seconds_at, second_scale, offsets, mask, second, numbers, least, 1, False, SECOND)
        update = first / (tl.sqrt(second) + eps)
    elif RULE == FACTORS:
        width = tl.load(columns + tensor)
        row, column = offsets // width, offsets % width
        first = tl.load(firsts_at + row, mask=mask, other=1.0).to(WIDE)
        second = tl.load(seconds_at + column, mask=mask, other=1.0).to(WIDE)
        update = grad / (tl.sqrt(first * second) + eps)
    elif RULE == SIGN:
        update = sign_of(grad)
    elif RULE == FRESH:
        part = tl.load(share)
        first = loaded(firsts_at, first_scale, offsets, mask, numbers, 0, FIRST, WIDE)
        first = first * (1.0 - part) + grad * part
        keep(firsts_at, first_scale, offsets, mask, first, numbers, least, 0, False, FIRST)
        update = sign_of(first)
    else:
        first = loaded(firsts_at, first_scale, offsets, mask, numbers, 0, FIRST, WIDE)
        moved = first * b2 + grad * c2
        keep(firsts_at, first_scale, offsets, mask, moved, numbers, least, 0, False, FIRST)
        mixed = first * b1 + grad * c1
        if RULE == LION:
            update = sign_of(mixed)
        elif RULE == CAUTIOUS:
            update = tl.where(sign_of(mixed) == sign_of(grad), sign_of(mixed), 0.0)
        else:
            update = mixed / (1.0 + tl.abs(mixed)) * (tl.load(norms + tensor) + eps)

    bound = tl.load(tolerance)
    if FILTER == KEEP_ELEMENTS:
        update = tl.where(tl.abs(grad) >= bound * bound * bound, update, 0.0)
    elif FILTER == KEEP_ROWS_AND_COLUMNS:
        row_mean = tl.load(row_means + tl.load(row_starts + tensor) + row, mask=mask, other=0.0)
        column_mean = tl.load(column_means + tl.load(column_starts + tensor) + column, mask=mask, other=0.0)
        keeps = (row_mean > bound * bound * bound) & (column_mean > bound * bound * bound)
        update = tl.where(keeps, update, 0.0)
    elif FILTER == KEEP_VECTORS:
        update = tl.where(tl.abs(grad) > bound * tl.sqrt(bound), update, 0.0)
    if SCALES:
        update *= tl.load(scale)
    if MODE == DECOUPLED:
        update += weight_decay * weight
    update *= tl.load(lr)
    if MODE == ABSOLUTE:
        update += weight_decay * weight
    after = weight - update
    if PARAM != WIDE:
        # The update is rounded first, then added.
        after = before + rounded(after - before, PARAM).to(WIDE)
    tl.store(params_at, rounded(after, PARAM), mask=mask)


@jit
def squares(  # type: ignore[no-untyped-def]
    params,
    grads,
    shadows,
    exists,
    tensor_of,
    start_of,
    sizes,
    parts,
    constants,
    ratio,
    MODE: tl.constexpr,
    BLENDS: tl.constexpr,
    PARAM: tl.constexpr,
    GRAD: tl.constexpr,
    SHADOW: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sums the squares of a block of gradients."""
    block = tl.program_id(0)
    tensor = tl.load(tensor_of + block)
    offsets = tl.load(start_of + block) + tl.arange(0, BLOCK)
    mask = offsets < tl.load(sizes + tensor)
    grads_at = tl.load(grads + tensor).to(tl.pointer_type(GRAD)) + offsets
    grad = tl.load(grads_at, mask=mask, other=0.0).to(WIDE) * tl.load(constants).to(WIDE)
    if MODE == L2:
        params_at = tl.load(params + tensor).to(tl.pointer_type(PARAM)) + offsets
        weight = tl.load(params_at, mask=mask, other=0.0).to(WIDE)
        if BLENDS:
            shadows_at = tl.load(shadows + tensor).to(tl.pointer_type(SHADOW)) + offsets
            shadow = tl.load(shadows_at, mask=mask, other=0.0).to(WIDE)
            is_there = tl.load(tl.load(exists + tensor).to(tl.pointer_type(tl.int8))) != 0
            weight = blended(weight, shadow, is_there, tl.load(ratio))
        grad += tl.load(constants + 1).to(WIDE) * weight
    tl.store(parts + block, tl.sum(grad * grad, axis=0))


@jit
def norms_of(parts, first_blocks, blocks, norms, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Adds up the sums of `squares` over the blocks of a tensor, and takes the root."""
    tensor = tl.program_id(0)
    begin, count = tl.load(first_blocks + tensor), tl.load(blocks + tensor)
    total = tl.full((), 0.0, parts.dtype.element_ty)
    start = count * 0
    while start < count:
        offsets = start + tl.arange(0, BLOCK)
        start += BLOCK
        total += tl.sum(tl.load(parts + begin + offsets, mask=offsets < count, other=0.0), axis=0)
    tl.store(norms + tensor, tl.sqrt(total))


@jit
def rows(  # type: ignore[no-untyped-def]
    params,
    grads,
    firsts,
    shadows,
    exists,
    tensor_of,
    row_of,
    heights,
    columns,
    row_starts,
    row_means,
    part_starts,
    parts,
    constants,
    ratio,
    chosen,
    INDEX: tl.constexpr,
    MODE: tl.constexpr,
    BLENDS: tl.constexpr,
    PARAM: tl.constexpr,
    GRAD: tl.constexpr,
    FIRST: tl.constexpr,
    SHADOW: tl.constexpr,
    WIDE: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Updates the averages of some rows of a matrix, and sums the squares of these rows by column."""
    tile = tl.program_id(0)
    tensor, begin = tl.load(tensor_of + tile), tl.load(row_of + tile)
    height, width = tl.load(heights + tensor), tl.load(columns + tensor)
    row = begin + tl.arange(0, HEIGHT)
    is_in = row < tl.where(tl.load(chosen) == INDEX, height, 0)
    params_at = tl.load(params + tensor).to(tl.pointer_type(PARAM))
    grads_at = tl.load(grads + tensor).to(tl.pointer_type(GRAD))
    firsts_at = tl.load(firsts + tensor).to(tl.pointer_type(FIRST)) + row
    parts_at = parts + tl.load(part_starts + tensor) + begin // HEIGHT * width
    sums = tl.zeros((HEIGHT,), WIDE)
    start = width * 0
    while start < width:
        column = start + tl.arange(0, WIDTH)
        start += WIDTH
        offsets = row[:, None] * width + column[None, :]
        mask = is_in[:, None] & (column < width)[None, :]
        grad = tl.load(grads_at + offsets, mask=mask, other=0.0).to(WIDE) * tl.load(constants).to(WIDE)
        if MODE == L2:
            weight = tl.load(params_at + offsets, mask=mask, other=0.0).to(WIDE)
            if BLENDS:
                shadows_at = tl.load(shadows + tensor).to(tl.pointer_type(SHADOW)) + offsets
                shadow = tl.load(shadows_at, mask=mask, other=0.0).to(WIDE)
                is_there = tl.load(tl.load(exists + tensor).to(tl.pointer_type(tl.int8))) != 0
                weight = blended(weight, shadow, is_there, tl.load(ratio))
            grad += tl.load(constants + 1).to(WIDE) * weight
        square = grad * grad
        sums += tl.sum(square, axis=1)
        tl.store(parts_at + column, tl.sum(square, axis=0), mask=column < width)
    mean = sums / width.to(WIDE) + tl.load(constants + 7).to(WIDE)
    b1, c1 = tl.load(constants + 3).to(WIDE), tl.load(constants + 4).to(WIDE)
    average = tl.load(firsts_at, mask=is_in, other=0.0).to(WIDE) * b1 + tl.sqrt(mean) * c1
    tl.store(firsts_at, rounded(average, FIRST), mask=is_in)
    tl.store(row_means + tl.load(row_starts + tensor) + row, mean, mask=is_in)


@jit
def columns_of(  # type: ignore[no-untyped-def]
    seconds,
    tensor_of,
    column_of,
    heights,
    columns,
    column_starts,
    column_means,
    part_starts,
    parts,
    constants,
    chosen,
    INDEX: tl.constexpr,
    SECOND: tl.constexpr,
    WIDE: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Updates the averages of some columns of a matrix from the sums of the kernel `rows`."""
    tile = tl.program_id(0)
    tensor = tl.load(tensor_of + tile)
    height, width = tl.load(heights + tensor), tl.load(columns + tensor)
    column = tl.load(column_of + tile) + tl.arange(0, WIDTH)
    is_in = column < tl.where(tl.load(chosen) == INDEX, width, 0)
    parts_at = parts + tl.load(part_starts + tensor) + column
    sums = tl.zeros((WIDTH,), WIDE)
    part = height * 0
    while part * HEIGHT < height:
        sums += tl.load(parts_at + part * width, mask=is_in, other=0.0)
        part += 1
    mean = sums / height.to(WIDE) + tl.load(constants + 7).to(WIDE)
    b1, c1 = tl.load(constants + 3).to(WIDE), tl.load(constants + 4).to(WIDE)
    seconds_at = tl.load(seconds + tensor).to(tl.pointer_type(SECOND)) + column
    average = tl.load(seconds_at, mask=is_in, other=0.0).to(WIDE) * b1 + tl.sqrt(mean) * c1
    tl.store(seconds_at, rounded(average, SECOND), mask=is_in)
    tl.store(column_means + tl.load(column_starts + tensor) + column, mean, mask=is_in)
