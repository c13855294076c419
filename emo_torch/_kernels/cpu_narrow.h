/* Included by cpu.c, once: reads, writes and rounds numbers in dtypes narrower than float32.
 *
 * The bits are the same as from `store` in ../_rules/moments.py and from ../_pieces/rounding.py. */

INLINE uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof(bits));
    return bits;
}

INLINE float from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

/* These functions have no branches, so that compilers use vector instructions. */

INLINE float from_half(uint32_t half) {
    const uint32_t exponents = 0x7c00u << 13, shifted = (half & 0x7fffu) << 13, exponent = shifted & exponents;
    const uint32_t normal = shifted + ((127u - 15u) << 23);
    const float tiny = from_bits(normal + (1u << 23)) - from_bits(113u << 23); /* for subnormal numbers */
    uint32_t bits = exponent == exponents ? normal + ((128u - 16u) << 23) : normal;
    bits = exponent == 0 ? bits_of(tiny) : bits;
    return from_bits(bits | (half & 0x8000u) << 16);
}

INLINE uint32_t to_half(float value) {
    const uint32_t sign = bits_of(value) & 0x80000000u, bits = bits_of(value) ^ sign;
    /* For subnormal numbers the sum with 0.5 rounds to multiples of 2^-24. */
    const uint32_t tiny = bits_of(from_bits(bits) + 0.5f) - (126u << 23);
    const uint32_t normal = (bits + 0xfffu + (bits >> 13 & 1u) - ((127u - 15u) << 23)) >> 13;
    uint32_t half = bits < 113u << 23 ? tiny : normal;
    half = bits >= 0x477ff000u ? 0x7c00u : half; /* 65520 and more */
    half = bits > 0x7f800000u ? 0x7e00u : half;
    return half | sign >> 16;
}

INLINE uint32_t to_bfloat16(float value) {
    const uint32_t bits = bits_of(value), rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    return value != value ? 0x7fc0u : rounded;
}

INLINE float from_narrow(uint16_t kept, const int kind) {
    return kind == BFLOAT16 ? from_bits((uint32_t)kept << 16) : from_half(kept);
}

INLINE uint16_t to_narrow(float value, const int kind) {
    return (uint16_t)(kind == BFLOAT16 ? to_bfloat16(value) : to_half(value));
}

/* The function `round_bits` of rounding.py: a float32 rounded to a value of a narrower dtype. `added` is added to
 * the bits that are then dropped. */
INLINE float round_bits(float value, uint32_t draws, const int random, const int kind) {
    const int dropped = kind == BFLOAT16 ? 16 : 13;
    const float least = 0x1p-14f;
    const uint32_t whole = bits_of(value), sign = whole & 0x80000000u;
    float shift = 0;
    if (kind == FLOAT16) shift = from_bits(whole ^ sign) < least ? from_bits(bits_of(least) | sign) : 0;
    const uint32_t bits = kind == FLOAT16 ? bits_of(value + shift) : whole;
    const uint32_t added = random ? draws >> (32 - dropped) : (bits >> dropped & 1u) + ((1u << (dropped - 1)) - 1u);
    float rounded = from_bits((bits + added) & ~((1u << dropped) - 1u));
    if (kind == FLOAT16) rounded -= shift;
    return (whole ^ sign) < 0x7f800000u ? rounded : value;
}

/* The function `scramble` of rounding.py: a hash of 32 bits. */
INLINE uint32_t scramble(uint32_t number) {
    number = (number ^ number >> 16) * 0x21f0aaadu;
    number = (number ^ number >> 15) * 0x735a2d97u;
    return number ^ number >> 15;
}

INLINE void widen_as(int64_t count, float *restrict wide, const uint16_t *restrict kept, const int kind) {
    for (int64_t index = 0; index < count; index++) wide[index] = from_narrow(kept[index], kind);
}

static void widen(int64_t count, float *wide, const void *kept, int64_t kind) {
    if (kind == BFLOAT16) widen_as(count, wide, kept, BFLOAT16);
    else widen_as(count, wide, kept, FLOAT16);
}

/* The function `store` of moments.py: a moment in its stored dtype. float16 has a small range: no moment becomes
 * infinite, and no moment of squares becomes 0. */
INLINE uint16_t stored(float value, const int squares, const int kind) {
    if (kind == FLOAT16) {
        value = value > 65504.0f ? 65504.0f : value;
        value = value < -65504.0f ? -65504.0f : value;
        if (squares) value = (value > 0) & (value < 0x1p-24f) ? 0x1p-24f : value;
    }
    return to_narrow(value, kind);
}

INLINE void narrow_as(int64_t count, uint16_t *restrict kept, const float *restrict wide, const int squares,
                      const int kind) {
    for (int64_t index = 0; index < count; index++) kept[index] = stored(wide[index], squares, kind);
}

static void narrow(int64_t count, void *kept, const float *wide, int squares, int64_t kind) {
    if (kind == BFLOAT16) narrow_as(count, kept, wide, 0, BFLOAT16);
    else if (squares) narrow_as(count, kept, wide, 1, FLOAT16);
    else narrow_as(count, kept, wide, 0, FLOAT16);
}

/* The kinds of a tensor's weights (and gradients) and of its moments, and the rounding of its weights. */
typedef struct {
    int weights, moments, rounding;
    uint16_t *compensations; /* for KAHAN */
    uint32_t place;          /* for STOCHASTIC: the tensor's key plus the index of the first element */
} Kept;

#define NOT_NARROW ((Kept){WIDE, WIDE, NEAREST, NULL, 0})

/* Moves a parameter to its new value in float32, `weight`: the update is rounded first, then added. */
INLINE void round_one(uint16_t *params, int64_t index, float weight, const Kept kept) {
    const int kind = kept.weights;
    const float before = from_narrow(params[index], kind), update = weight - before;
    float change = update;
    if (kept.rounding == KAHAN) {
        const float rest = from_narrow(kept.compensations[index], kind), wanted = update + rest;
        const float rounded = round_bits(wanted, 0, 0, kind);
        const float moved = round_bits(before + rounded, 0, 0, kind);
        kept.compensations[index] = to_narrow(update == 0 ? rest : wanted - (moved - before), kind);
        change = update == 0 ? 0 : rounded;
    } else if (kept.rounding == STOCHASTIC) {
        const uint32_t draws = scramble(kept.place + (uint32_t)index);
        const float moved = round_bits(before + update, draws, 1, kind);
        change = round_bits(moved - before, 0, 0, kind);
    }
    params[index] = to_narrow(before + from_narrow(to_narrow(change, kind), kind), kind);
}

INLINE void round_as(int64_t count, uint16_t *restrict params, const float *restrict weights, const Kept kept) {
#pragma GCC ivdep
    for (int64_t index = 0; index < count; index++) round_one(params, index, weights[index], kept);
}

static void round_into(int64_t count, uint16_t *params, const float *weights, Kept kept) {
#define ROUND(rounding, kind)                                                                      \
    round_as(count, params, weights, (Kept){kind, WIDE, rounding, kept.compensations, kept.place})
#define ROUND_TO(kind)                                                                             \
    do {                                                                                           \
        if (kept.rounding == KAHAN) ROUND(KAHAN, kind);                                                 \
        else if (kept.rounding == STOCHASTIC) ROUND(STOCHASTIC, kind);                                  \
        else ROUND(NEAREST, kind);                                                                 \
    } while (0)
    if (kept.weights == BFLOAT16) ROUND_TO(BFLOAT16);
    else ROUND_TO(FLOAT16);
#undef ROUND
#undef ROUND_TO
}
