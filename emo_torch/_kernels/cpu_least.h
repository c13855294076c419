/* Included by cpu.c, once: looks for small elements of gradients, in one pass over memory that writes nothing.
 *
 * `found[i]` becomes 1 if part i has an element that is not at least `bound` in size. A NaN is such an element.
 * A part is left soon after the first one that is found.
 */

#define BLOCK 4096
/* A processor reads several places ahead faster than one: so many parts of an array are read side by side. */
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
