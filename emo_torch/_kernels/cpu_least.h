/* Included by cpu.c, once: finds gradients with small elements, in one pass over memory that writes nothing.
 *
 * `found[i]` becomes 1 if part i has an element whose size is below `bound`, or a NaN, and otherwise 0. The search
 * in a part ends soon after the first such element.
 */

#define BLOCK 4096
/* A processor prefetches several sequences of addresses faster than one: an array is read as this many parts in
 * parallel. */
#define STREAMS 4

#define DEFINE(NAME, REAL, ABS)                                                                                \
    INLINE int NAME##_in(const REAL *restrict values, int64_t apart, int64_t count, REAL bound) {              \
        int below = 0;                                                                                         \
        _Pragma("omp simd reduction(| : below)")                                                               \
        for (int64_t index = 0; index < count; index++)                                                        \
            below |= !(ABS(values[index]) >= bound) | !(ABS(values[apart + index]) >= bound) |                 \
                     !(ABS(values[2 * apart + index]) >= bound) | !(ABS(values[3 * apart + index]) >= bound);  \
        return below;                                                                                          \
    }                                                                                                          \
    void NAME(const uintptr_t *parts, const int64_t *counts, int64_t n, double bound_as_double, int threads,   \
              uint8_t *found) {                                                                                \
        const REAL bound = (REAL)bound_as_double;                                                              \
        _Pragma("omp parallel for num_threads(threads) if (threads > 1) schedule(dynamic)")                    \
        for (int64_t part = 0; part < n; part++) {                                                             \
            const REAL *values = (const REAL *)parts[part];                                                    \
            const int64_t apart = counts[part] / STREAMS;                                                      \
            int below = 0;                                                                                     \
            for (int64_t start = 0; start < apart && !below; start += BLOCK) {                                 \
                const int64_t many = apart - start < BLOCK ? apart - start : BLOCK;                            \
                below = NAME##_in(values + start, apart, many, bound);                                         \
            }                                                                                                  \
            for (int64_t index = STREAMS * apart; index < counts[part]; index++)                               \
                below |= !(ABS(values[index]) >= bound);                                                       \
            found[part] = below != 0;                                                                          \
        }                                                                                                      \
    }

DEFINE(emo_any_below_float, float, fabsf)
DEFINE(emo_any_below_double, double, fabs)
