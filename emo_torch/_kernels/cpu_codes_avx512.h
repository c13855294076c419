/* Included by cpu_codes.h for AVX-512: 16 codes at a time. */

#include <immintrin.h>

INLINE __mmask16 lanes(int64_t left) { return (__mmask16)(left < 16 ? (1u << left) - 1u : 0xffffu); }

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

/* Encodes a block without NaN, whose scale is neither tiny nor the largest one.
 *
 * In a decade of the table the midpoints have equal distances, so a linear function of the share is the code:
 * its whole part, where the function grows by 1 from midpoint to midpoint. The border between two decades is a
 * midpoint itself; at most one border lies between two powers of 2. The linear function has an error below
 * DOUBT, so shares that come closer to a midpoint are compared with the midpoint itself. */
#define DOUBT 0x1p-12f

INLINE void encode_as(int64_t count, uint8_t *restrict codes, const float *restrict wide, float inverse,
                      const Code *table, const int squares) {
    const __m512 borders = _mm512_loadu_ps(table->borders), more_borders = _mm512_loadu_ps(table->borders + 16);
    const __m512i decades = _mm512_loadu_si512(table->decades), more = _mm512_loadu_si512(table->decades + 16);
    const __m512 slopes = _mm512_loadu_ps(table->slopes), offsets = _mm512_loadu_ps(table->offsets);
    const __m512 caps = _mm512_loadu_ps(table->caps);
    const __m512i one = _mm512_set1_epi32(1);
    for (int64_t index = 0; index < count; index += 16) {
        const __mmask16 own = lanes(count - index);
        const __m512 value = _mm512_maskz_loadu_ps(own, wide + index);
        const __m512 share = _mm512_mul_ps(value, _mm512_set1_ps(inverse));
        __m512 size = share;
        __mmask16 below = 0;
        if (!squares) {
            below = _mm512_movepi32_mask(_mm512_castps_si512(share));
            size = _mm512_abs_ps(share);
            /* A negative share at a midpoint takes the code of the larger size: the next number is above the
             * midpoint. */
            const __m512i bits = _mm512_castps_si512(size);
            size = _mm512_castsi512_ps(_mm512_mask_add_epi32(bits, below, bits, one));
        }
        size = _mm512_max_ps(size, _mm512_set1_ps(0x1p-24f));
        const __m512i exponent = _mm512_srli_epi32(_mm512_castps_si512(size), 23);
        const __m512 border = _mm512_permutex2var_ps(borders, exponent, more_borders);
        __m512i decade = _mm512_permutex2var_epi32(decades, exponent, more);
        decade = _mm512_mask_add_epi32(decade, _mm512_cmp_ps_mask(size, border, _CMP_GT_OQ), decade, one);
        __m512 place = _mm512_fmadd_ps(size, _mm512_permutexvar_ps(decade, slopes),
                                       _mm512_permutexvar_ps(decade, offsets));
        place = _mm512_min_ps(place, _mm512_permutexvar_ps(decade, caps));
        __m512i code = _mm512_cvttps_epi32(place);
        const __m512 rest = _mm512_abs_ps(_mm512_reduce_ps(place, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
        const __mmask16 doubtful = _mm512_mask_cmp_ps_mask(own, rest, _mm512_set1_ps(DOUBT), _CMP_LT_OQ);
        if (squares) {
            const __mmask16 above = _mm512_cmp_ps_mask(value, _mm512_set1_ps(LEAST_COUNTED), _CMP_GE_OQ);
            code = _mm512_mask_max_epi32(code, above, code, one);
        } else {
            /* -1 has the place of the smallest negative value, so the negative values begin at the second. */
            const __m512 first = _mm512_set1_ps(-table->middles[SIGNED_ZERO - 1]);
            const __mmask16 second = _mm512_mask_cmp_ps_mask(below, size, first, _CMP_GT_OQ);
            code = _mm512_max_epi32(code, _mm512_maskz_set1_epi32(below, 1));
            code = _mm512_mask_max_epi32(code, second, code, _mm512_set1_epi32(2));
            const __m512i down = _mm512_sub_epi32(_mm512_set1_epi32(SIGNED_ZERO + 1), code);
            code = _mm512_mask_blend_epi32(below, _mm512_add_epi32(_mm512_set1_epi32(SIGNED_ZERO), code), down);
        }
        _mm512_mask_cvtepi32_storeu_epi8(codes + index, own, code);
        for (uint32_t left = doubtful; left != 0; left &= left - 1) {
            const int64_t lane = index + __builtin_ctz(left);
            const uint32_t found = code_of(wide[lane] * inverse, table);
            codes[lane] = (uint8_t)(squares && wide[lane] >= LEAST_COUNTED && found == 0 ? 1 : found);
        }
    }
}

static void encode_most(int64_t count, uint8_t *restrict codes, const float *restrict wide, float inverse,
                        const Code *table, int squares) {
    if (squares) encode_as(count, codes, wide, inverse, table, 1);
    else encode_as(count, codes, wide, inverse, table, 0);
}
