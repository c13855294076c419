/* Looks for elements of gradients that are small: one pass over memory that writes nothing.
 *
 * `found[i]` becomes 1 if part i has an element that is not at least `bound` in size. A NaN is such an element.
 * A part is left at the end of the first block that has one.
 */

#include <math.h>
#include <stdint.h>

#define BLOCK 4096

#define DEFINE(NAME, REAL, ABS)                                                                                \
    void NAME(const uintptr_t *parts, const int64_t *counts, int64_t n, double bound_as_double, int threads,   \
              uint8_t *found) {                                                                                \
        const REAL bound = (REAL)bound_as_double;                                                              \
        _Pragma("omp parallel for num_threads(threads) if (threads > 1) schedule(dynamic)")                    \
        for (int64_t part = 0; part < n; part++) {                                                             \
            const REAL *values = (const REAL *)parts[part];                                                    \
            found[part] = 0;                                                                                   \
            for (int64_t start = 0; start < counts[part] && !found[part]; start += BLOCK) {                    \
                const int64_t end = start + BLOCK < counts[part] ? start + BLOCK : counts[part];               \
                int32_t below = 0;                                                                             \
                for (int64_t index = start; index < end; index++) below |= !(ABS(values[index]) >= bound);     \
                found[part] = below != 0;                                                                      \
            }                                                                                                  \
        }                                                                                                      \
    }

DEFINE(emo_any_below_float, float, fabsf)
DEFINE(emo_any_below_double, double, fabs)
