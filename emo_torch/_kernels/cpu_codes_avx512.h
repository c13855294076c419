/* Included by cpu_codes.h for AVX-512: 64 codes at a time. */

#include <immintrin.h>

INLINE __mmask16 lanes(int64_t left) {
    return (__mmask16)(left >= 16 ? 0xffffu : left > 0 ? (1u << left) - 1u : 0u);
}

/* The order of groups of four bytes that undoes the order of packing, and is undone by unpacking. */
INLINE __m512i transposed(__m512i bytes) {
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    return _mm512_permutexvar_epi32(order, bytes);
}

/* Eight pairs of registers hold the table; three bits of a code select one of the pairs. */
static void decode_block(int64_t count, float *restrict wide, const uint8_t *restrict codes, float scale,
                         const Code *table) {
    __m512 low[8], high[8];
    for (int part = 0; part < 8; part++) {
        low[part] = _mm512_loadu_ps(table->values + 32 * part);
        high[part] = _mm512_loadu_ps(table->values + 32 * part + 16);
    }
    for (int64_t index = 0; index < count; index += 16) {
        const __mmask16 own = lanes(count - index);
        const __m512i code = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(own, codes + index));
        const __mmask16 bit5 = _mm512_test_epi32_mask(code, _mm512_set1_epi32(32));
        const __mmask16 bit6 = _mm512_test_epi32_mask(code, _mm512_set1_epi32(64));
        const __mmask16 bit7 = _mm512_test_epi32_mask(code, _mm512_set1_epi32(128));
        __m512 found[8];
#pragma GCC unroll 8
        for (int part = 0; part < 8; part++) found[part] = _mm512_permutex2var_ps(low[part], code, high[part]);
#pragma GCC unroll 4
        for (int part = 0; part < 4; part++)
            found[part] = _mm512_mask_blend_ps(bit5, found[2 * part], found[2 * part + 1]);
        found[0] = _mm512_mask_blend_ps(bit6, found[0], found[1]);
        found[1] = _mm512_mask_blend_ps(bit6, found[2], found[3]);
        found[0] = _mm512_mask_blend_ps(bit7, found[0], found[1]);
        _mm512_mask_storeu_ps(wide + index, own, _mm512_mul_ps(found[0], _mm512_set1_ps(scale)));
    }
}

#define VBMI __attribute__((target("avx512vbmi")))

INLINE int has_bytes(void) { return __builtin_cpu_supports("avx512vbmi") != 0; }

/* The table for processors that look up 64 bytes at once: each of the four bytes of a value has a table. The negative
 * values of first moments are those of larger codes: only 128 sizes are in the registers. */
typedef struct {
    __m512i parts[4][4];
} Bytes;

INLINE VBMI Bytes bytes_of(const Code *table, const int squares) {
    Bytes bytes;
    for (int byte = 0; byte < 4; byte++)
        for (int part = squares ? 0 : 2; part < 4; part++)
            bytes.parts[byte][part] = _mm512_loadu_si512(table->bytes[byte] + 64 * part);
    return bytes;
}

/* Decodes 64 elements. */
INLINE VBMI void decode_64(float *restrict wide, const uint8_t *restrict codes, float scale, const Bytes *bytes,
                           const int squares) {
    const __m512i code = transposed(_mm512_loadu_si512(codes));
    __m512i found[4];
    if (squares) {
        const __mmask64 upper = _mm512_movepi8_mask(code);
#pragma GCC unroll 4
        for (int byte = 0; byte < 4; byte++) {
            const __m512i *parts = bytes->parts[byte];
            found[byte] = _mm512_mask_blend_epi8(upper, _mm512_permutex2var_epi8(parts[0], code, parts[1]),
                                                 _mm512_permutex2var_epi8(parts[2], code, parts[3]));
        }
    } else {
        /* The negative value of the code c is that of the code 255 - c. The zero has a code, but no such size. */
        const __m512i zero = _mm512_set1_epi8(SIGNED_ZERO);
        const __mmask64 below = _mm512_cmplt_epu8_mask(code, zero), others = _mm512_cmpneq_epi8_mask(code, zero);
        const __m512i size = _mm512_mask_sub_epi8(code, below, zero, code);
#pragma GCC unroll 4
        for (int byte = 0; byte < 4; byte++)
            found[byte] = _mm512_maskz_permutex2var_epi8(others, bytes->parts[byte][2], size, bytes->parts[byte][3]);
        found[3] = _mm512_mask_add_epi8(found[3], below, found[3], _mm512_set1_epi8(-128));
    }
    const __m512i low01 = _mm512_unpacklo_epi8(found[0], found[1]), high01 = _mm512_unpackhi_epi8(found[0], found[1]);
    const __m512i low23 = _mm512_unpacklo_epi8(found[2], found[3]), high23 = _mm512_unpackhi_epi8(found[2], found[3]);
    found[0] = _mm512_unpacklo_epi16(low01, low23);
    found[1] = _mm512_unpackhi_epi16(low01, low23);
    found[2] = _mm512_unpacklo_epi16(high01, high23);
    found[3] = _mm512_unpackhi_epi16(high01, high23);
#pragma GCC unroll 4
    for (int part = 0; part < 4; part++)
        _mm512_storeu_ps(wide + 16 * part, _mm512_mul_ps(_mm512_castsi512_ps(found[part]), _mm512_set1_ps(scale)));
}

INLINE VBMI void decode_bytes_as(int64_t count, float *restrict wide, const uint8_t *restrict codes, float scale,
                                 const Code *table, const int squares) {
    const Bytes bytes = bytes_of(table, squares);
    int64_t index = 0;
    for (; index + 64 <= count; index += 64) decode_64(wide + index, codes + index, scale, &bytes, squares);
    if (index < count) decode_block(count - index, wide + index, codes + index, scale, table);
}

VBMI static void decode_bytes(int64_t count, float *restrict wide, const uint8_t *restrict codes, float scale,
                              const Code *table, int squares) {
    if (squares) decode_bytes_as(count, wide, codes, scale, table, 1);
    else decode_bytes_as(count, wide, codes, scale, table, 0);
}

typedef struct {
    __m512 borders, more_borders, slopes, offsets, caps;
    __m512i decades, more_decades;
} Registers;

INLINE __mmask64 all_of(const __mmask16 parts[4]) {
    const __mmask32 first = _mm512_kunpackw(parts[1], parts[0]), last = _mm512_kunpackw(parts[3], parts[2]);
    return _mm512_kunpackd(last, first);
}

/* The bits 16 to 23 of 64 numbers. */
INLINE __m512i third_bytes(const __m512i units[4]) {
    const __m512i odd = _mm512_set_epi16(63, 61, 59, 57, 55, 53, 51, 49, 47, 45, 43, 41, 39, 37, 35, 33, 31, 29, 27, 25,
                                         23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
    const __m512i low = _mm512_permutex2var_epi16(units[0], odd, units[1]);
    const __m512i high = _mm512_permutex2var_epi16(units[2], odd, units[3]);
    const __m512i order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
    return _mm512_permutexvar_epi64(order, _mm512_packus_epi16(low, high));
}

/* For each of 64 elements, whether its value times `factor` is above a bound. */
INLINE __mmask64 are_above(const float *wide, float factor, float bound) {
    __mmask16 parts[4];
    for (int part = 0; part < 4; part++)
        parts[part] = _mm512_cmp_ps_mask(_mm512_mul_ps(_mm512_loadu_ps(wide + 16 * part), _mm512_set1_ps(factor)),
                                         _mm512_set1_ps(bound), _CMP_GT_OQ);
    return all_of(parts);
}

/* Encodes 64 elements. */
INLINE void encode_64(uint8_t *restrict codes, const float *restrict wide, float inverse, const Registers *lines,
                      const Code *table, const int squares) {
    __m512 size[4];
    __m512i units[4], decade[4];
    __mmask16 negative[4], close[4];
    /* Four vectors side by side: the processor need not wait for the results of one of them. */
#define EACH_PART                                                                                  \
    _Pragma("GCC unroll 4") for (int part = 0; part < 4; part++)
    EACH_PART size[part] = _mm512_mul_ps(_mm512_loadu_ps(wide + 16 * part), _mm512_set1_ps(inverse));
    if (!squares) EACH_PART negative[part] = _mm512_movepi32_mask(_mm512_castps_si512(size[part]));
    /* At least 2^-31, so that five bits of the exponent are the place in the tables. */
    EACH_PART size[part] = _mm512_range_ps(size[part], _mm512_set1_ps(0x1p-31f), 11); /* the larger size */
    if (!squares) {
        /* A negative share at a midpoint takes the code of the larger size: its next number is above the midpoint. */
        EACH_PART {
            const __m512i bits = _mm512_castps_si512(size[part]);
            size[part] = _mm512_castsi512_ps(_mm512_mask_add_epi32(bits, negative[part], bits, _mm512_set1_epi32(1)));
        }
    }
    EACH_PART {
        const __m512i exponent = _mm512_srli_epi32(_mm512_castps_si512(size[part]), 23);
        const __m512 border = _mm512_permutex2var_ps(lines->borders, exponent, lines->more_borders);
        const __m512i below = _mm512_permutex2var_epi32(lines->decades, exponent, lines->more_decades);
        const __mmask16 above = _mm512_cmp_ps_mask(size[part], border, _CMP_GT_OQ);
        decade[part] = _mm512_mask_add_epi32(below, above, below, _mm512_set1_epi32(1));
    }
    EACH_PART {
        const __m512 slope = _mm512_permutexvar_ps(decade[part], lines->slopes);
        const __m512 offset = _mm512_permutexvar_ps(decade[part], lines->offsets);
        const __m512 cap = _mm512_permutexvar_ps(decade[part], lines->caps);
        units[part] = _mm512_cvttps_epi32(_mm512_min_ps(_mm512_fmadd_ps(size[part], slope, offset), cap));
    }
    EACH_PART close[part] = _mm512_testn_epi32_mask(units[part], _mm512_set1_epi32(UNITS - 2 * DOUBT));
#undef EACH_PART
    __m512i code = third_bytes(units);
    const __mmask64 doubtful = all_of(close);
    if (squares) {
        /* A value above 0 has at least the code 1. */
        const __mmask64 small = _mm512_testn_epi8_mask(code, code);
        if (__builtin_expect(small != 0, 0)) {
            const __mmask64 counted = are_above(wide, 1, 0x0.fffffep-126f);
            code = _mm512_mask_mov_epi8(code, small & counted, _mm512_set1_epi8(1));
        }
    } else {
        const __mmask64 below = all_of(negative);
        const __mmask64 small = _mm512_mask_cmple_epu8_mask(below, code, _mm512_set1_epi8(1));
        const __m512i zero = _mm512_set1_epi8(SIGNED_ZERO);
        code = _mm512_mask_sub_epi8(_mm512_add_epi8(code, zero), below, _mm512_set1_epi8(SIGNED_ZERO + 1 - 256), code);
        if (__builtin_expect(small != 0, 0)) {
            /* -1 has the place of the smallest negative value: one midpoint is between two codes and the zero. */
            const __mmask64 zeros = are_above(wide, inverse, table->middles[SIGNED_ZERO - 1]);
            code = _mm512_mask_mov_epi8(code, small & zeros, zero);
            code = _mm512_mask_mov_epi8(code, small & ~zeros, _mm512_set1_epi8(SIGNED_ZERO - 1));
        }
    }
    _mm512_storeu_si512(codes, code);
    for (uint64_t left = doubtful; left != 0; left &= left - 1) {
        const int lane = __builtin_ctzll(left);
        codes[lane] = encode_one(wide[lane], inverse, table, squares, MOST_COUNTED);
    }
}

INLINE void encode_as(int64_t count, uint8_t *restrict codes, const float *restrict wide, float inverse,
                      const Code *table, const int squares) {
    const Registers lines = {_mm512_loadu_ps(table->borders),      _mm512_loadu_ps(table->borders + 16),
                             _mm512_loadu_ps(table->lines.slopes), _mm512_loadu_ps(table->lines.offsets),
                             _mm512_loadu_ps(table->lines.caps),   _mm512_loadu_si512(table->decades),
                             _mm512_loadu_si512(table->decades + 16)};
    int64_t index = 0;
    for (; index + 64 <= count; index += 64)
        encode_64(codes + index, wide + index, inverse, &lines, table, squares);
    if (index == count) return;
    float room[64] = {0};
    uint8_t found[64];
    memcpy(room, wide + index, sizeof(float) * (size_t)(count - index));
    encode_64(found, room, inverse, &lines, table, squares);
    memcpy(codes + index, found, (size_t)(count - index));
}

static void encode_most(int64_t count, uint8_t *restrict codes, const float *restrict wide, float inverse,
                        const Code *table, int squares) {
    if (squares) encode_as(count, codes, wide, inverse, table, 1);
    else encode_as(count, codes, wide, inverse, table, 0);
}
