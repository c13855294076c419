/* One step of many tensors at once, on the CPU, reading and writing each stream of memory once.
 *
 * The numbers are those of `single_tensor` in ../_emotional.py: the same operations in the same order.
 * Compiled on first use by compiler.py; __init__.py holds the twins of the structures below.
 */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef _OPENMP
#include <omp.h>
#else
static int omp_get_thread_num(void) { return 0; }
static int omp_get_num_threads(void) { return 1; }
#endif

#define INLINE static inline __attribute__((always_inline))

/* In the order of RULES in __init__.py. */
enum { ADAM, LION, CAUTIOUS, SOFTSIGN, FACTORS, REF };
/* In the order of MODES in ../_weight_decay.py. */
enum { DECOUPLED, ABSOLUTE, L2 };
/* In the order of FILTERS in __init__.py. */
enum { KEEP_ALL, KEEP_ELEMENTS, KEEP_ROWS_AND_COLUMNS, KEEP_MATRICES };
/* In the order of FIRST_STEPS in __init__.py. */
enum { NO_FIRST, FIRST_SOFTSIGN, FIRST_CAUTIOUS };

typedef struct {
    int64_t kind;
    double b1, b2, eps;
    void **first, **second; /* moments, or rows and columns; a pointer for each tensor */
} Rule;

typedef struct {
    int64_t tensors, threads;
    const int64_t *rows, *columns; /* columns 0: below two dimensions, with `rows` elements */
    void **params, **grads;
    void **shadows; /* NULL for none */
    uint8_t **shadows_exist;
    const void *tolerance, *scale, *ratio, *lr; /* of the parameters' dtype */
    double weight_decay, shadow_rate;
    int64_t mode, maximize, filter;
    int64_t rules;
    const int64_t *chosen; /* NULL for the only rule */
    Rule rule[3];
    int64_t first_steps;
    const int64_t *chosen_first;
    int64_t first_step[3];
    /* Of RefAdamWMiniScheduleFree. */
    void **norms;      /* the smoothed norm of each tensor's gradients, below 0 before the first */
    const void *share; /* how much of the weights goes into the first moment; of the parameters' dtype */
    double norm_factor, least_lr, most_lr, injection_bound; /* the bound is below 0 for none */
} Job;

/* What one thread does: elements `begin` to `end` of all tensors laid end to end. */
typedef struct {
    int64_t begin, end;
} Share;

INLINE int64_t size_of(const Job *job, int64_t tensor) {
    int64_t columns = job->columns[tensor];
    return job->rows[tensor] * (columns ? columns : 1);
}

INLINE Share share_of(int64_t total, int64_t thread, int64_t threads) {
    Share share = {total / threads * thread, total / threads * (thread + 1)};
    if (thread == threads - 1) share.end = total;
    return share;
}

/* Where a share cuts a tensor that starts at `start`: at whole rows, or at whole lines of cache. */
INLINE int64_t cut(int64_t at, int64_t start, int64_t size, int64_t columns) {
    int64_t unit = columns ? columns : 64, inside = at - start;
    if (inside <= 0) return 0;
    if (inside >= size) return size;
    return inside / unit * unit;
}

/* Of matrices with few columns: the most of those, rows at a time, and sums side by side. */
enum { MOST_FEW = 16, ROWS = 64, LANES = 64 };

/* How many elements of a matrix surely stay in a core's cache, and the bytes of a line of it. */
enum { CACHED = 16384, LINE = 64 };

/* How many tensors ahead is looked. */
enum { AHEAD = 4 };

INLINE int64_t choice(const int64_t *chosen, int64_t most) {
    if (chosen == NULL || *chosen < 0) return 0;
    return *chosen < most ? *chosen : most - 1;
}

#define REAL float
#define NAME(name) name##_float
#define SQRT sqrtf
#define ABS fabsf
#define NEXT nextafterf
#include "cpu_rules.h"
#undef REAL
#undef NAME
#undef SQRT
#undef ABS
#undef NEXT

#define REAL double
#define NAME(name) name##_double
#define SQRT sqrt
#define ABS fabs
#define NEXT nextafter
#include "cpu_rules.h"

/* A tensor as DLPack describes it. */
typedef struct {
    void *data;
    int32_t device, device_index, dimensions;
    uint8_t kind, bits;
    uint16_t lanes;
    const int64_t *shape, *strides;
    uint64_t offset;
} Described;

/* DLPack's function that describes one of Python's tensors; not 0 and an error in Python where it fails. */
typedef int (*Describe)(void *tensor, Described *described);

/* Finds tensors of Python's, which are held: where each lies, its size as a matrix as in a Job, and its
 * kind: the bits of a number and DLPack's code for what that is, or -1 for what is not contiguous or lies
 * elsewhere than in the CPU's memory. `found` has four rows of `count`. Returns whether all were found.
 *
 * `hints` are two rows of places that torch is likely to read, its tensors' and their storages': asked for
 * ahead, they are on their way together, which would else be waited for one after the other. Nothing
 * happens where a place is no longer what it was. */
int emo_find(Describe describe, void **tensors, int64_t count, int64_t *found, const char **hints) {
    for (int64_t tensor = 0; tensor < count; tensor++) {
        if (hints != NULL && tensor + 2 * AHEAD < count) {
            __builtin_prefetch(tensors[tensor + 2 * AHEAD]);
            for (int line = 0; line < 4; line++)
                __builtin_prefetch(hints[tensor + AHEAD] + line * LINE);
            for (int line = 0; line < 2; line++)
                __builtin_prefetch(hints[count + tensor + AHEAD] + line * LINE);
        }
        Described seen;
        if (describe(tensors[tensor], &seen)) return 0;
        int64_t size = 1;
        int fits = seen.device == 1 && seen.lanes == 1;
        for (int64_t dimension = seen.dimensions - 1; dimension >= 0; dimension--) {
            const int64_t length = seen.shape[dimension];
            /* No strides say that it is contiguous. */
            fits &= length == 1 || seen.strides == NULL || seen.strides[dimension] == size;
            size *= length;
        }
        const int64_t rows = seen.dimensions < 2 ? size : seen.shape[0];
        found[tensor] = (int64_t)(uintptr_t)seen.data + (int64_t)seen.offset;
        found[count + tensor] = rows;
        found[2 * count + tensor] = seen.dimensions < 2 ? 0 : rows ? size / rows : 0;
        found[3 * count + tensor] = fits ? 256 * seen.bits + seen.kind : -1;
    }
    return 1;
}
