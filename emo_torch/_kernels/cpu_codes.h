/* Included by cpu.c, once: moments in 8 bits, which a step decodes and encodes block by block.
 *
 * The codes and the scales are the same as from ../_rules/eight_bit.py; ../../emo_shared/eight_bit.py has the rules. */

/* The same numbers as in ../../emo_shared/eight_bit.py. */
enum { CODED_BLOCK = 256, BUCKETS = 23 * 256 + 2, BUCKET_SHIFT = 15, FIRST_BUCKET = (127 - 23) << 8 };
#define LEAST_COUNTED 0x1p-126f
#define MOST_COUNTED 0x1p126f
#define MOST_BESIDE_SQUARE 0x1p63f

/* The code of the value 0 of a first moment; a second moment has the code 0. */
enum { SIGNED_ZERO = 127 };

/* The linear functions of decades, each with its lower border. */
typedef struct {
    float edges[16], slopes[16], offsets[16], caps[16];
} Lines;

/* One table. codes.py fills the structure. */
typedef struct {
    float values[256], middles[256];
    uint8_t least[2 * BUCKETS]; /* the least code of each bucket */
    uint8_t bytes[4][256];      /* the first, second, ... byte of each value */
    /* For each power of 2: the border of decades above it, and the number of decades below it. */
    float borders[32];
    int32_t decades[32];
    Lines lines;
} Code;

INLINE uint32_t size_bits(float value) { return bits_of(value) & 0x7fffffffu; }

/* What a value counts as: 0 below the least size, and no more than the largest size. */
INLINE float counted(float value, float most) {
    value = value > most ? most : value;
    value = value < -most ? -most : value;
    return fabsf(value) < LEAST_COUNTED ? 0 : value;
}

/* The largest size in a block; NaN if the block has a NaN. As integers, the bits of sizes have the same order. */
INLINE float scale_of(int64_t count, const float *restrict wide, float most_counted) {
    int32_t most = 0;
    for (int64_t index = 0; index < count; index++) {
        const int32_t size = (int32_t)size_bits(wide[index]);
        most = size > most ? size : most;
    }
    return counted(from_bits((uint32_t)most), most_counted);
}

/* The number of midpoints below `share`, found by the bucket of `share`. */
INLINE uint32_t code_of(float share, const Code *table) {
    int32_t bucket = (int32_t)(size_bits(share) >> BUCKET_SHIFT) - (FIRST_BUCKET - 1);
    bucket = bucket < 0 ? 0 : bucket > BUCKETS - 1 ? BUCKETS - 1 : bucket;
    const uint32_t code = table->least[bucket + (signbit(share) ? BUCKETS : 0)];
    return code + (share > table->middles[code]);
}

INLINE uint8_t encode_one(float value, float inverse, const Code *table, int squares, float most) {
    const uint32_t code = code_of(counted(value, most) * inverse, table);
    return (uint8_t)(squares && value >= LEAST_COUNTED && code == 0 ? 1 : code);
}

static void encode_each(int64_t count, uint8_t *codes, const float *wide, float inverse, const Code *table,
                        int squares, float most) {
    for (int64_t index = 0; index < count; index++)
        codes[index] = encode_one(wide[index], inverse, table, squares, most);
}

/* A faster way to encode a block without NaN, whose scale is neither tiny nor the largest one.
 *
 * Codes are counted from the value 0 on. In a decade of the table the midpoints have equal distances: a linear
 * function of a share is a whole number at each of them, and the whole part of the function is the code. The border
 * between two decades is a midpoint, too. At most one border lies between two powers of 2. The function is computed
 * in units of 1 / UNITS, so that its error is below DOUBT units. Shares that come as close to a midpoint are compared
 * with the midpoint itself. codes.py has the numbers of the functions, to which DOUBT units are added. */
enum { UNITS = 65536, DOUBT = 8 };

#ifdef __AVX512F__
#include "cpu_codes_avx512.h"
#else
static void decode_block(int64_t count, float *restrict wide, const uint8_t *restrict codes, float scale,
                         const Code *table) {
    for (int64_t index = 0; index < count; index++) wide[index] = table->values[codes[index]] * scale;
}

INLINE void encode_as(int64_t count, uint8_t *restrict codes, const float *restrict wide, float inverse,
                      const Code *restrict table, const int squares) {
    const Lines lines = table->lines; /* A copy: compilers know that its numbers do not change. */
    uint64_t doubtful[CODED_BLOCK / 8] = {0};
    uint8_t *restrict doubts = (uint8_t *)doubtful;
    for (int64_t index = 0; index < count; index++) {
        const int32_t bits = (int32_t)bits_of(wide[index] * inverse), negative = squares ? 0 : bits < 0;
        /* A negative share at a midpoint takes the code of the larger size: its next number is above the midpoint. */
        const float size = from_bits((uint32_t)((bits & 0x7fffffff) + negative));
        float slope = lines.slopes[0], offset = lines.offsets[0], cap = lines.caps[0];
#define IN_DECADE(decade)                                                                          \
    do {                                                                                           \
        const int is_above = size > lines.edges[decade];                                           \
        slope = is_above ? lines.slopes[decade] : slope;                                           \
        offset = is_above ? lines.offsets[decade] : offset;                                        \
        cap = is_above ? lines.caps[decade] : cap;                                                 \
    } while (0)
        IN_DECADE(1);
        IN_DECADE(2);
        IN_DECADE(3);
        IN_DECADE(4);
        IN_DECADE(5);
        IN_DECADE(6);
        IN_DECADE(7);
        IN_DECADE(8);
#undef IN_DECADE
        const float place = size * slope + offset;
        const int32_t units = (int32_t)(place < cap ? place : cap), code = units / UNITS;
        /* A value above 0 has at least the code 1 in the table of squares. In the other table, -1 has the place of the
         * smallest negative value: the code is 2 or more, or the value counts as 0. */
        const int is_small = squares ? code == 0 : (code < 2) & negative;
        doubts[index] = (uint8_t)(is_small | ((units & (UNITS - 2 * DOUBT)) == 0));
        codes[index] = (uint8_t)(squares ? code : SIGNED_ZERO + negative + (negative ? -code : code));
    }
    for (int64_t index = 0; index < CODED_BLOCK; index += 8)
        if (doubtful[index / 8])
            for (int64_t place = index; place < index + 8; place++)
                if (doubts[place]) codes[place] = encode_one(wide[place], inverse, table, squares, MOST_COUNTED);
}

static void encode_most(int64_t count, uint8_t *codes, const float *wide, float inverse, const Code *table,
                        int squares) {
    if (squares) encode_as(count, codes, wide, inverse, table, 1);
    else encode_as(count, codes, wide, inverse, table, 0);
}

INLINE int has_bytes(void) { return 0; }
#define decode_bytes(count, wide, codes, scale, table, squares) decode_block(count, wide, codes, scale, table)
#endif

static void encode_block(int64_t count, uint8_t *codes, float scale, const float *wide, const Code *table,
                         int squares, float most) {
    if (!(scale > 0)) memset(codes, squares ? 0 : SIGNED_ZERO, (size_t)count);
    else if (scale > 0x1p-100f && scale < most) encode_most(count, codes, wide, 1 / scale, table, squares);
    else encode_each(count, codes, wide, 1 / scale, table, squares, most);
}

INLINE int64_t block_at(int64_t start, int64_t count) {
    return count - start < CODED_BLOCK ? count - start : CODED_BLOCK;
}

/* Elements from the beginning of a block. */
static void decode(int64_t count, float *wide, const uint8_t *codes, const float *scales, const Code *table,
                   int squares) {
    for (int64_t start = 0; start < count; start += CODED_BLOCK, scales++) {
        const int64_t many = block_at(start, count);
        if (has_bytes()) decode_bytes(many, wide + start, codes + start, *scales, table, squares);
        else decode_block(many, wide + start, codes + start, *scales, table);
    }
}

/* `most` is the largest size that counts: smaller for a first moment beside a second one. The scales come first, so
 * that the processor need not wait for each of them. */
static void encode(int64_t count, uint8_t *codes, float *scales, const float *wide, const Code *table,
                   int squares, float most) {
    for (int64_t start = 0; start < count; start += CODED_BLOCK)
        scales[start / CODED_BLOCK] = scale_of(block_at(start, count), wide + start, most);
    for (int64_t start = 0; start < count; start += CODED_BLOCK)
        encode_block(block_at(start, count), codes + start, scales[start / CODED_BLOCK], wide + start, table,
                     squares, most);
}
