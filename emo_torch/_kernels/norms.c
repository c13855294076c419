/* The sum of the sizes of all elements of many tensors: one pass over memory that writes nothing.
 *
 * A block is added up in parallel lanes, and then the sums of the blocks are added up in the order of the blocks.
 * Blocks depend only on the size of a tensor: the bits are the same for any number of threads and any instructions.
 */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>

/* Compiled for several levels of instructions; the linker of the system selects one of them. */
#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && __GNUC__ >= 8 && !defined(__clang__)
#define CLONED __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define CLONED
#endif

enum { LANES = 32, SHORT = 1024, BLOCK = 65536 };

static int64_t blocks_of(int64_t size) { return (size + BLOCK - 1) / BLOCK; }

#define DEFINE(NAME, REAL, ABS)                                                                            \
    CLONED static double NAME##_block(const REAL *values, int64_t size) {                                  \
        double total = 0;                                                                                  \
        for (int64_t start = 0; start < size; start += SHORT) {                                            \
            const int64_t end = start + SHORT < size ? start + SHORT : size;                               \
            REAL lanes[LANES] = {0};                                                                       \
            int64_t index = start;                                                                         \
            for (; index + LANES <= end; index += LANES)                                                   \
                for (int lane = 0; lane < LANES; lane++) lanes[lane] += ABS(values[index + lane]);         \
            for (int lane = 0; index < end; index++, lane++) lanes[lane] += ABS(values[index]);            \
            for (int lane = 0; lane < LANES; lane++) total += lanes[lane];                                 \
        }                                                                                                  \
        return total;                                                                                      \
    }                                                                                                      \
                                                                                                           \
    /* Writes the sum to `sum`; returns 0, or 1 if memory is missing. */                                   \
    int NAME(const uintptr_t *tensors, const int64_t *sizes, int64_t n, int threads, double *sum) {        \
        int64_t *ends = malloc(sizeof(int64_t) * (size_t)(n + 1)), blocks = 0;                             \
        for (int64_t tensor = 0; ends != NULL && tensor < n; tensor++)                                     \
            ends[tensor] = blocks += blocks_of(sizes[tensor]);                                             \
        double *sums = malloc(sizeof(double) * (size_t)(blocks + 1));                                      \
        if (ends == NULL || sums == NULL) {                                                                \
            free(ends);                                                                                    \
            free(sums);                                                                                    \
            return 1;                                                                                      \
        }                                                                                                  \
        _Pragma("omp parallel for num_threads(threads) if (threads > 1) schedule(static)")                 \
        for (int64_t block = 0; block < blocks; block++) {                                                 \
            int64_t low = 0, high = n - 1;                                                                 \
            while (low < high) {                                                                           \
                const int64_t middle = (low + high) / 2;                                                   \
                if (ends[middle] <= block) low = middle + 1;                                               \
                else high = middle;                                                                        \
            }                                                                                              \
            const int64_t start = (block - ends[low] + blocks_of(sizes[low])) * BLOCK;                     \
            const int64_t left = sizes[low] - start;                                                       \
            const REAL *values = (const REAL *)tensors[low] + start;                                       \
            sums[block] = NAME##_block(values, left < BLOCK ? left : BLOCK);                               \
        }                                                                                                  \
        *sum = 0;                                                                                          \
        for (int64_t block = 0; block < blocks; block++) *sum += sums[block];                              \
        free(ends);                                                                                        \
        free(sums);                                                                                        \
        return 0;                                                                                          \
    }

DEFINE(emo_sum_of_sizes_float, float, fabsf)
DEFINE(emo_sum_of_sizes_double, double, fabs)
