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

/* One table. codes.py fills the structure. */
typedef struct {
    float values[256], middles[256];
    uint8_t least[2 * BUCKETS]; /* the least code of each bucket */
    uint8_t bytes[4][256];      /* the first, second, ... byte of each value */
    /* The linear functions for AVX-512. */
    float borders[32], slopes[16], offsets[16], caps[16];
    int32_t decades[32];
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

static void encode_each(int64_t count, uint8_t *codes, const float *wide, float inverse, const Code *table,
                        int squares, float most) {
    for (int64_t index = 0; index < count; index++) {
        const float value = counted(wide[index], most);
        const uint32_t code = code_of(value * inverse, table);
        codes[index] = (uint8_t)(squares && value > 0 && code == 0 ? 1 : code);
    }
}

static void decode_block(int64_t count, float *restrict wide, const uint8_t *restrict codes, float scale,
                         const Code *table);
static void encode_most(int64_t count, uint8_t *restrict codes, const float *restrict wide, float inverse,
                        const Code *table, int squares);

#ifdef __AVX512F__
#include "cpu_codes_avx512.h"
#else
static void decode_block(int64_t count, float *restrict wide, const uint8_t *restrict codes, float scale,
                         const Code *table) {
    for (int64_t index = 0; index < count; index++) wide[index] = table->values[codes[index]] * scale;
}

static void encode_most(int64_t count, uint8_t *restrict codes, const float *restrict wide, float inverse,
                        const Code *table, int squares) {
    encode_each(count, codes, wide, inverse, table, squares, MOST_COUNTED);
}

INLINE int has_bytes(void) { return 0; }
#define decode_bytes decode_block
#endif

static void encode_block(int64_t count, uint8_t *codes, float *scale, const float *wide, const Code *table,
                         int squares, float most) {
    *scale = scale_of(count, wide, most);
    if (!(*scale > 0)) memset(codes, squares ? 0 : SIGNED_ZERO, (size_t)count);
    else if (*scale > 0x1p-100f && *scale < most)
        encode_most(count, codes, wide, 1 / *scale, table, squares);
    else encode_each(count, codes, wide, 1 / *scale, table, squares, most);
}

/* Elements from the beginning of a block. */
static void decode(int64_t count, float *wide, const uint8_t *codes, const float *scales, const Code *table) {
    for (int64_t start = 0; start < count; start += CODED_BLOCK, scales++) {
        const int64_t many = count - start < CODED_BLOCK ? count - start : CODED_BLOCK;
        if (has_bytes()) decode_bytes(many, wide + start, codes + start, *scales, table);
        else decode_block(many, wide + start, codes + start, *scales, table);
    }
}

/* `most` is the largest size that counts: smaller for a first moment beside a second one. */
static void encode(int64_t count, uint8_t *codes, float *scales, const float *wide, const Code *table,
                   int squares, float most) {
    for (int64_t start = 0; start < count; start += CODED_BLOCK, scales++) {
        const int64_t many = count - start < CODED_BLOCK ? count - start : CODED_BLOCK;
        encode_block(many, codes + start, scales, wide + start, table, squares, most);
    }
}
