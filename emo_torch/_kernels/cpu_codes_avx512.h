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

/* The same for processors that look up 64 bytes at once: each of the four bytes of a value has a table. */
__attribute__((target("avx512vbmi"))) static void decode_bytes(
    int64_t count, float *restrict wide, const uint8_t *restrict codes, float scale, const Code *table) {
    __m512i parts[4][4];
    for (int byte = 0; byte < 4; byte++)
        for (int part = 0; part < 4; part++)
            parts[byte][part] = _mm512_loadu_si512(table->bytes[byte] + 64 * part);
    const __m512 scales = _mm512_set1_ps(scale);
    int64_t index = 0;
    for (; index + 64 <= count; index += 64) {
        const __m512i code = transposed(_mm512_loadu_si512(codes + index));
        const __mmask64 upper = _mm512_movepi8_mask(code);
        __m512i found[4];
#pragma GCC unroll 4
        for (int byte = 0; byte < 4; byte++)
            found[byte] = _mm512_mask_blend_epi8(
                upper, _mm512_permutex2var_epi8(parts[byte][0], code, parts[byte][1]),
                _mm512_permutex2var_epi8(parts[byte][2], code, parts[byte][3]));
        const __m512i low01 = _mm512_unpacklo_epi8(found[0], found[1]);
        const __m512i high01 = _mm512_unpackhi_epi8(found[0], found[1]);
        const __m512i low23 = _mm512_unpacklo_epi8(found[2], found[3]);
        const __m512i high23 = _mm512_unpackhi_epi8(found[2], found[3]);
        found[0] = _mm512_unpacklo_epi16(low01, low23);
        found[1] = _mm512_unpackhi_epi16(low01, low23);
        found[2] = _mm512_unpacklo_epi16(high01, high23);
        found[3] = _mm512_unpackhi_epi16(high01, high23);
#pragma GCC unroll 4
        for (int part = 0; part < 4; part++)
            _mm512_storeu_ps(wide + index + 16 * part, _mm512_mul_ps(_mm512_castsi512_ps(found[part]), scales));
    }
    if (index < count) decode_block(count - index, wide + index, codes + index, scale, table);
}

INLINE int has_bytes(void) { return __builtin_cpu_supports("avx512vbmi") != 0; }

typedef struct {
    __m512 borders, more_borders, slopes, offsets, caps;
    __m512i decades, more_decades;
} Registers;

/* The size of shares. A negative share at a midpoint takes the code of the larger size: its next number is above the
 * midpoint. */
INLINE __m512 size_of_share(__m512 share, __mmask16 below) {
    const __m512i bits = _mm512_castps_si512(_mm512_abs_ps(share));
    return _mm512_castsi512_ps(_mm512_mask_add_epi32(bits, below, bits, _mm512_set1_epi32(1)));
}

/* The linear function of 16 sizes, in units. Sizes below 2^-31 have the same place in the tables. */
INLINE __m512i units_of(__m512 size, const Registers *lines) {
    const __m512i bits = _mm512_srli_epi32(_mm512_castps_si512(size), 23);
    const __m512i exponent = _mm512_subs_epu16(bits, _mm512_set1_epi32(96));
    const __m512 border = _mm512_permutex2var_ps(lines->borders, exponent, lines->more_borders);
    __m512i decade = _mm512_permutex2var_epi32(lines->decades, exponent, lines->more_decades);
    const __mmask16 above = _mm512_cmp_ps_mask(size, border, _CMP_GT_OQ);
    decade = _mm512_mask_add_epi32(decade, above, decade, _mm512_set1_epi32(1));
    const __m512 place = _mm512_fmadd_ps(size, _mm512_permutexvar_ps(decade, lines->slopes),
                                         _mm512_permutexvar_ps(decade, lines->offsets));
    return _mm512_cvttps_epi32(_mm512_min_ps(place, _mm512_permutexvar_ps(decade, lines->caps)));
}

INLINE __mmask64 all_of(const __mmask16 parts[4]) {
    const __mmask32 first = _mm512_kunpackw(parts[1], parts[0]), last = _mm512_kunpackw(parts[3], parts[2]);
    return _mm512_kunpackd(last, first);
}

/* Encodes 64 elements. */
INLINE void encode_64(uint8_t *restrict codes, const float *restrict wide, float inverse, const Registers *lines,
                      const Code *table, const int squares) {
    __m512i units[4];
    __mmask16 negative[4], close[4];
#pragma GCC unroll 4
    for (int part = 0; part < 4; part++) {
        __m512 size = _mm512_mul_ps(_mm512_loadu_ps(wide + 16 * part), _mm512_set1_ps(inverse));
        if (!squares) {
            negative[part] = _mm512_movepi32_mask(_mm512_castps_si512(size));
            size = size_of_share(size, negative[part]);
        }
        units[part] = units_of(size, lines);
        close[part] = _mm512_testn_epi32_mask(units[part], _mm512_set1_epi32(UNITS - 2 * DOUBT));
        units[part] = _mm512_srli_epi32(units[part], 16);
    }
    __m512i code = transposed(_mm512_packus_epi16(_mm512_packus_epi32(units[0], units[1]),
                                                  _mm512_packus_epi32(units[2], units[3])));
    __mmask64 doubtful = all_of(close);
    if (squares) {
        /* A value above 0 has at least the code 1. */
        doubtful |= _mm512_testn_epi8_mask(code, code);
    } else {
        /* -1 has the place of the smallest negative value: the code is 2 or more, or the value counts as 0. */
        const __mmask64 below = all_of(negative);
        doubtful |= _mm512_mask_cmple_epu8_mask(below, code, _mm512_set1_epi8(1));
        code = _mm512_mask_sub_epi8(_mm512_add_epi8(code, _mm512_set1_epi8(SIGNED_ZERO)), below,
                                    _mm512_set1_epi8((char)(SIGNED_ZERO + 1)), code);
    }
    _mm512_storeu_si512(codes, code);
    for (uint64_t left = doubtful; left != 0; left &= left - 1) {
        const int lane = __builtin_ctzll(left);
        codes[lane] = encode_one(wide[lane], inverse, table, squares, MOST_COUNTED);
    }
}

INLINE void encode_as(int64_t count, uint8_t *restrict codes, const float *restrict wide, float inverse,
                      const Code *table, const int squares) {
    const Registers lines = {
        _mm512_loadu_ps(table->borders),     _mm512_loadu_ps(table->borders + 16), _mm512_loadu_ps(table->lines.slopes),
        _mm512_loadu_ps(table->lines.offsets),     _mm512_loadu_ps(table->lines.caps),         _mm512_loadu_si512(table->decades),
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
