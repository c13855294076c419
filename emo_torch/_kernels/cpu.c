/* One step of many tensors at once, on the CPU, reading and writing each stream of memory once.
 *
 * The numbers are those of `single_tensor` in ../_ways.py: the same operations in the same order.
 * ../build.py compiles this file once for each level of instructions. job.py holds the twins of the
 * structures below.
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
enum { ADAM, LION, CAUTIOUS, SOFTSIGN, FACTORS, REF, SIGN, FRESH, PILOT };
/* In the order of MODES in ../_weight_decay.py. */
enum { DECOUPLED, ABSOLUTE, L2 };
/* In the order of FILTERS in __init__.py. */
enum { KEEP_ALL, KEEP_ELEMENTS, KEEP_ROWS_AND_COLUMNS, KEEP_MATRICES, KEEP_SCALED };
/* How a stream is kept: in the dtype of the computation, or in a narrower one. In the order of KINDS in job.py. */
enum { WIDE, BFLOAT16, FLOAT16 };
/* In the order of ROUNDINGS in ../_pieces/rounding.py. */
enum { NEAREST, KAHAN, STOCHASTIC };
/* In the order of FIRST_STEPS in __init__.py. */
enum { NO_FIRST, FIRST_SOFTSIGN, FIRST_CAUTIOUS };

typedef struct {
    int64_t kind;
    double b1, b2, eps;
    void **first, **second; /* moments, or rows and columns; a pointer for each tensor */
    int64_t first_kind, second_kind;
} Rule;

/* Of EmoPilot: what a pass measures, or by what it moves. */
typedef struct {
    int64_t measures;    /* whether the pass measures; it moves where this is 0 */
    double *products;    /* measured over all tensors: <g, g>, <g, u> and <u, u>, u the last direction */
    double *squares;     /* measured: the sum of the squares of each tensor's weights */
    const void *lengths; /* of each tensor's step; of the parameters' dtype */
    double gate, rate;   /* the factor of the gradient, and how far averages follow */
    float **steps;       /* how many steps each tensor took */
    void **averages;     /* NULL for none */
} Pilot;

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
    const void *share; /* how much of the weights goes into the first moment; of the parameters' dtype. Of
                          the rule FRESH, how much of the gradient does */
    double norm_factor, least_lr, most_lr, injection_bound; /* the bound is below 0 for none */
    /* Of parameters and gradients below float32. */
    int64_t param_kind, grad_kind, rounding;
    void **compensations; /* for KAHAN */
    const int64_t *keys;  /* for STOCHASTIC: one for each tensor */
    /* Of the members of v3.6.1 and v3.9.1. */
    int64_t trusts; /* whether shadows follow at every step, by `shadow_rate`: the rule of blend_by_trust */
    double weights; /* the factor of the weights before the step, for the rules SIGN and FRESH */
    const Pilot *pilot; /* of the rule PILOT alone, which has no shadow, no filter and no scale */
} Job;

/* What job.py compares with its own before it hands over a job. Count the version up with each change of
 * the structures above. */
enum { JOB_VERSION = 3 };
int64_t emo_job_version(void) { return JOB_VERSION; }
int64_t emo_job_size(void) { return (int64_t)sizeof(Job); }
int64_t emo_rule_size(void) { return (int64_t)sizeof(Rule); }

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

/* Where a share cuts a tensor that starts at `start`: at a multiple of `unit`. */
INLINE int64_t cut(int64_t at, int64_t start, int64_t size, int64_t unit) {
    int64_t inside = at - start;
    if (inside <= 0) return 0;
    if (inside >= size) return size;
    return inside / unit * unit;
}

/* Of matrices with few columns: the most of those, rows at a time, and sums side by side. */
enum { MOST_FEW = 16, ROWS = 64, LANES = 64 };

/* Sums are taken over blocks that depend on a tensor's shape alone, and then over the blocks in their order,
 * so that the bits are the same for any number of threads. A block is of so many elements of a vector, or of
 * as many rows of a matrix as make about so many elements, within bounds. Threads share no block. */
enum { VECTOR_BLOCK = 1024, MATRIX_BLOCK = 65536, LEAST_ROWS = 16 };

INLINE int64_t rows_of_block(int64_t columns) {
    const int64_t rows = MATRIX_BLOCK / columns;
    return rows > ROWS ? ROWS : rows < LEAST_ROWS ? LEAST_ROWS : rows;
}

/* How many elements of a matrix surely stay in a core's cache, and the bytes of a line of it. */
enum { CACHED = 16384, LINE = 64 };

/* Where no sums are taken, threads share tensors by so many elements: a line of cache or more. */
enum { UNIT = 64 };

/* Elements that are made wide at a time: those of all streams stay in a core's first cache. */
enum { TILE = 512, ROOM = 1024 }; /* the latter for whole blocks */

/* How many tensors ahead is looked. */
enum { AHEAD = 8 };

INLINE int64_t choice(const int64_t *chosen, int64_t most) {
    if (chosen == NULL || *chosen < 0) return 0;
    return *chosen < most ? *chosen : most - 1;
}

#include "cpu_narrow.h"

#define REAL float
#define MAY_BE_NARROW 1
#define NAME(name) name##_float
#define SQRT sqrtf
#define ABS fabsf
#define NEXT nextafterf
#include "cpu_elements.h"
#include "cpu_ref.h"
#include "cpu_signs.h"
#include "cpu_pilot.h"
#include "cpu_factors.h"
#include "cpu_tiles.h"
#include "cpu_run.h"
#undef REAL
#undef MAY_BE_NARROW
#undef NAME
#undef SQRT
#undef ABS
#undef NEXT

#define REAL double
#define MAY_BE_NARROW 0
#define NAME(name) name##_double
#define SQRT sqrt
#define ABS fabs
#define NEXT nextafter
#include "cpu_elements.h"
#include "cpu_ref.h"
#include "cpu_signs.h"
#include "cpu_pilot.h"
#include "cpu_factors.h"
#include "cpu_tiles.h"
#include "cpu_run.h"

#include "cpu_least.h"

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

/* Those of Python's own functions that are called: this is compiled without its headers. */
typedef struct {
    void *(*list_item)(void *list, intptr_t index);
    int (*set_list_item)(void *list, intptr_t index, void *item); /* which takes the item over */
    void *(*dict_item)(void *dictionary, void *key);
    int (*dict_next)(void *dictionary, intptr_t *place, void **key, void **value);
    void *(*attribute)(void *object, void *name);
    void *(*type_of)(void *object);
    void (*release)(void *object);
    void *none, *grad; /* None, and the name of the attribute */
    void *plain[2];    /* the types of which it is known what they are */
} Python;

/* Asks ahead for what torch is likely to read of a tensor, which would else be waited for piece by piece:
 * its description lies at `at`. Nothing happens where a place is no longer what it was. */
INLINE void ask_for(const char *at, int lines) {
    for (int line = 0; line < lines; line++) __builtin_prefetch(at + line * LINE);
}

/* Fills a list, which has room for `filled`, with the gradients of those parameters that had one before.
 * Returns whether the parameters are the known ones, and just the same have a gradient. `prefetch` is as for
 * emo_find: of what had a gradient, of its moments, and of the gradients at the end. */
int emo_gradients(const Python *python, void *params, void **known, const uint8_t *had, int64_t count,
                  void *grads, int64_t filled, const char **prefetch, int64_t hinted) {
    const int64_t room = filled;
    filled = 0;
    for (int64_t index = 0; index < count; index++) {
        if (index + 2 * AHEAD < count) __builtin_prefetch(known[index + 2 * AHEAD]);
        if (filled + 2 * AHEAD < room) {
            ask_for(prefetch[filled + 2 * AHEAD], 4);
            ask_for(prefetch[hinted - room + filled + 2 * AHEAD], 4);
        }
        void *param = python->list_item(params, (intptr_t)index);
        if (param != known[index]) return 0;
        void *grad = python->attribute(param, python->grad);
        if (grad == NULL) return 0;
        const int has = grad != python->none;
        if (has != had[index]) {
            python->release(grad);
            return 0;
        }
        if (has) python->set_list_item(grads, (intptr_t)filled++, grad);
        else python->release(grad);
    }
    return 1;
}

/* Whether a dictionary holds just those keys and values, in this order. */
int emo_is_dict(const Python *python, void *dictionary, void **keys, void **values, int64_t count) {
    void *key, *value;
    intptr_t place = 0;
    int64_t index = 0;
    while (index < count && python->dict_next(dictionary, &place, &key, &value) &&
           key == keys[index] && value == values[index])
        index++;
    return index == count;
}

/* Puts side by side: parameters, what stands in their states by each of the names, and gradients. Returns
 * whether it was all there. `names` has a row of `count` for each. */
int emo_gather(const Python *python, void *params, void *states, void *grads, int64_t count, void **names,
               int64_t names_each, void **tensors) {
    for (int64_t index = 0; index < count; index++) {
        void *state = python->list_item(states, (intptr_t)index);
        tensors[index] = python->list_item(params, (intptr_t)index);
        for (int64_t name = 0; name < names_each; name++) {
            void *kept = python->dict_item(state, names[name * count + index]);
            if (kept == NULL) return 0;
            tensors[(name + 1) * count + index] = kept;
        }
        tensors[(names_each + 1) * count + index] = python->list_item(grads, (intptr_t)index);
    }
    return 1;
}

static int is_plain(const Python *python, void *object) {
    void *type = python->type_of(object);
    python->release(type);
    return type == python->plain[0] || type == python->plain[1];
}

/* Finds tensors of Python's, which are held: where each lies, its size as a matrix as in a Job, and its
 * kind: the bits of a number, DLPack's code for what that is and a hash of the shape, or -1 for what is not
 * contiguous or lies elsewhere than in the CPU's memory. `found` has four rows of `count`. Returns 0 where one was not found,
 * 2 where it is all as in `known`, which may be NULL, and 1 otherwise.
 *
 * `prefetch` is two rows of places that torch is likely to read, its tensors' and their storages': asked for
 * ahead, they are on their way together, which would else be waited for one after the other. Nothing
 * happens where a place is no longer what it was. */
int emo_find(const Python *python, Describe describe, void **tensors, int64_t count, int64_t *found,
             const char **prefetch, const int64_t *known) {
    int is_known = known != NULL;
    for (int64_t tensor = 0; tensor < count; tensor++) {
        if (prefetch != NULL && tensor + 2 * AHEAD < count) {
            __builtin_prefetch(tensors[tensor + 2 * AHEAD]);
            ask_for(prefetch[tensor + AHEAD], 4);
            ask_for(prefetch[count + tensor + AHEAD], 2);
        }
        Described seen;
        if (!is_plain(python, tensors[tensor]) || describe(tensors[tensor], &seen)) return 0;
        int64_t size = 1;
        uint64_t shape = (uint64_t)seen.dimensions;
        int fits = seen.device == 1 && seen.lanes == 1;
        for (int64_t dimension = seen.dimensions - 1; dimension >= 0; dimension--) {
            const int64_t length = seen.shape[dimension];
            /* No strides say that it is contiguous. */
            fits &= length == 1 || seen.strides == NULL || seen.strides[dimension] == size;
            size *= length;
            shape = shape * 1000003 + (uint64_t)length;
        }
        const int64_t rows = seen.dimensions < 2 ? size : seen.shape[0];
        found[tensor] = (int64_t)(uintptr_t)seen.data + (int64_t)seen.offset;
        found[count + tensor] = rows;
        found[2 * count + tensor] = seen.dimensions < 2 ? 0 : rows ? size / rows : 0;
        found[3 * count + tensor] = fits ? (int64_t)(shape << 17 >> 1) + 256 * seen.bits + seen.kind : -1;
        for (int row = 0; is_known && row < 4; row++)
            is_known = found[row * count + tensor] == known[row * count + tensor];
    }
    return 1 + is_known;
}
