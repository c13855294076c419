/* One step of many tensors on the CPU, which reads and writes each stream of memory once.
 *
 * A stream is one kind of tensor, such as the gradients: an array with an address for each parameter.
 * The numbers are the same as from `single_tensor` in ../_step/ways.py: the same operations in the same order.
 * ../build.py compiles this file once for each level of instructions. job.py and pilot.py have the same
 * structures as this file, in Python.
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

/* In the order of RULES in describe.py. */
enum { ADAM, LION, CAUTIOUS, SOFTSIGN, FACTORS, REF, SIGN, FRESH, PILOT, PILOT_FACTORS };
/* In the order of MODES in ../_pieces/weight_decay.py. */
enum { DECOUPLED, ABSOLUTE, L2 };
/* In the order of FILTERS in describe.py. */
enum { KEEP_ALL, KEEP_ELEMENTS, KEEP_ROWS_AND_COLUMNS, KEEP_MATRICES, KEEP_SCALED };
/* The kinds of dtype of a stream: WIDE is the dtype of the computation, the others are narrower. In the order of
 * NARROW in job.py; CODED is for moments in 8 bits only. */
enum { WIDE, BFLOAT16, FLOAT16, CODED };
/* In the order of ROUNDINGS in ../_pieces/rounding.py. */
enum { NEAREST, KAHAN, STOCHASTIC };
/* In the order of FIRST_STEPS in describe.py. */
enum { NO_FIRST, FIRST_SOFTSIGN, FIRST_CAUTIOUS };

typedef struct {
    int64_t kind;
    double b1, b2, eps;
    void **first, **second; /* moments, or averages of rows and of columns; a pointer for each tensor */
    int64_t first_kind, second_kind;
    float **first_scales, **second_scales; /* for CODED moments: the scales of the blocks of each tensor */
} Rule;

/* One pass of EmoPilot: the numbers that it needs, and its results. */
typedef struct {
    int64_t measures;    /* 1 for the pass that measures, 0 for the pass that moves */
    int64_t weighs;      /* whether the squares of the weights are added up, before or after the weights move */
    double *products;    /* over all tensors: <g, g> of a pass that measures, and <g, m> and <m, m> of a pass that
                            moves; m is the first moment before the step */
    double *squares;     /* the sum of the squares of each tensor's weights */
    uint8_t *known;      /* for the pass that measures: the tensors whose squares are known, unless their marks
                            differ; NULL for none */
    double *marks;       /* MARKS elements of each tensor after it has moved; NULL without `known` */
    const void *lengths; /* the length of each tensor's step, in the parameters' dtype */
    double gate, rate;   /* the factor of the gradient, and how far averaged weights follow */
    float **steps;       /* the number of steps that each tensor took */
    void **averages;     /* the averaged weights; NULL without averages */
    /* For the rule PILOT_FACTORS. */
    void **rows;   /* the averages over rows, in the dtype of the second moments; those over columns, and the averages
                      of elements, are the second moments */
    void *factors; /* for each matrix a number for each row and each column, kept from pass to pass */
} Pilot;

typedef struct {
    int64_t tensors, threads;
    const int64_t *rows, *columns; /* 0 columns: a tensor below two dimensions, with `rows` elements */
    void **params, **grads;
    void **shadows; /* NULL without shadows */
    uint8_t **shadows_exist;
    const void *tolerance, *scale, *ratio, *lr; /* in the dtype of the computation */
    double weight_decay, shadow_rate;
    int64_t mode, maximize, filter;
    int64_t rules;
    const int64_t *chosen; /* the index of the selected rule; NULL for rule 0 */
    Rule rule[3];
    int64_t first_steps;
    const int64_t *chosen_first;
    int64_t first_step[3];
    /* For RefAdamWMiniScheduleFree. */
    void **norms;      /* the smoothed norm of each tensor's gradients; below 0 before the first step */
    const void *share; /* in the dtype of the computation: the share of the weights in the new first moment.
                          For the rule FRESH, the share of the gradient in the new first moment */
    double norm_factor, least_lr, most_lr, injection_bound; /* the bound is below 0 for no bound */
    /* For parameters and gradients in a narrow dtype. */
    int64_t param_kind, grad_kind, rounding;
    void **compensations; /* for KAHAN */
    const int64_t *keys;  /* for STOCHASTIC: a key for each tensor */
    /* For the members of v3.6.1 and v3.9.1. */
    int64_t trusts; /* whether shadows follow at every step, by `shadow_rate`: the rule of blend_by_trust */
    double weights; /* the factor of the weights before the step, for the rules SIGN and FRESH */
    const Pilot *pilot; /* for the rules PILOT and PILOT_FACTORS, which have no shadow, no filter and no scale */
    const void *tables; /* for CODED moments: two structures `Code`, of first and of second moments */
} Job;

/* job.py compares these three numbers with its own numbers before it passes a job. Increase JOB_VERSION with
 * each change of the structures above. */
enum { JOB_VERSION = 7 };
int64_t emo_job_version(void) { return JOB_VERSION; }
int64_t emo_job_size(void) { return (int64_t)sizeof(Job); }
int64_t emo_rule_size(void) { return (int64_t)sizeof(Rule); }

/* The share of one thread: elements `begin` to `end`, if all tensors were one array in their order. */
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

/* The element at which the end of a share cuts a tensor that starts at `start`: a multiple of `unit`. */
INLINE int64_t cut(int64_t at, int64_t start, int64_t size, int64_t unit) {
    int64_t inside = at - start;
    if (inside <= 0) return 0;
    if (inside >= size) return size;
    return inside / unit * unit;
}

/* For matrices with few columns: the largest number of columns, the rows of one call, and the number of sums in
 * parallel. */
enum { MOST_FEW = 16, ROWS = 64, LANES = 64 };

/* Elements are added up in blocks, and then the sums of the blocks in the order of the blocks. Blocks depend only
 * on the shape of a tensor, so that the bits are the same for any number of threads. A block of a vector has
 * VECTOR_BLOCK elements. A block of a matrix has LEAST_ROWS to ROWS rows, with about MATRIX_BLOCK elements. Each
 * block belongs to one thread. */
enum { VECTOR_BLOCK = 1024, MATRIX_BLOCK = 65536, LEAST_ROWS = 16 };

INLINE int64_t rows_of_block(int64_t columns) {
    const int64_t rows = MATRIX_BLOCK / columns;
    return rows > ROWS ? ROWS : rows < LEAST_ROWS ? LEAST_ROWS : rows;
}

/* The number of elements of a matrix that surely stay in the cache of a core, and the bytes of a cache line. */
enum { CACHED = 16384, LINE = 64 };

/* Without sums, threads share a tensor in units of this many elements: at least a cache line. */
enum { UNIT = 64 };

/* The number of elements that are copied to float32 at a time: the copies of all streams stay in the first cache
 * of a core. ROOM is the number for tiles of whole rows. */
enum { TILE = 512, ROOM = 1024 };

/* The elements of a tensor that EmoPilot compares, at least 2. As in pilot.py. */
enum { MARKS = 4 };

/* The distance of prefetching, in tensors. */
enum { AHEAD = 8 };

INLINE int64_t choice(const int64_t *chosen, int64_t most) {
    if (chosen == NULL || *chosen < 0) return 0;
    return *chosen < most ? *chosen : most - 1;
}

#include "cpu_narrow.h"
#include "cpu_codes.h"

#define REAL float
#define MAY_BE_NARROW 1
#define NAME(name) name##_float
#define SQRT sqrtf
#define ABS fabsf
#define COPYSIGN copysignf
#define NEXT nextafterf
#include "cpu_elements.h"
#include "cpu_coded.h"
#include "cpu_ref.h"
#include "cpu_signs.h"
#include "cpu_factors.h"
#include "cpu_tiles.h"
#include "cpu_pilot.h"
#include "cpu_pilot_factors.h"
#include "cpu_pilot_run.h"
#include "cpu_run.h"
#undef REAL
#undef MAY_BE_NARROW
#undef NAME
#undef SQRT
#undef ABS
#undef COPYSIGN
#undef NEXT

#define REAL double
#define MAY_BE_NARROW 0
#define NAME(name) name##_double
#define SQRT sqrt
#define ABS fabs
#define COPYSIGN copysign
#define NEXT nextafter
#include "cpu_elements.h"
#include "cpu_ref.h"
#include "cpu_signs.h"
#include "cpu_factors.h"
#include "cpu_tiles.h"
#include "cpu_pilot.h"
#include "cpu_pilot_factors.h"
#include "cpu_pilot_run.h"
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

/* DLPack's function that describes a tensor of Python. If it fails, it returns another number than 0 and sets an
 * error in Python. */
typedef int (*Describe)(void *tensor, Described *described);

/* The functions of Python that this file calls: it is compiled without the headers of Python. */
typedef struct {
    void *(*list_item)(void *list, intptr_t index);
    int (*set_list_item)(void *list, intptr_t index, void *item); /* the list then owns the item */
    void *(*dict_item)(void *dictionary, void *key);
    int (*dict_next)(void *dictionary, intptr_t *place, void **key, void **value);
    void *(*attribute)(void *object, void *name);
    void *(*type_of)(void *object);
    void (*release)(void *object);
    void *none, *grad; /* None, and the name of the attribute "grad" */
    void *plain[2];    /* the types of tensors that are read */
} Python;

/* Prefetches torch's description of a tensor, at the address `at`: without prefetching, the processor waits for
 * each cache line in turn. An address that is no longer valid does no harm. */
INLINE void ask_for(const char *at, int lines) {
    for (int line = 0; line < lines; line++) __builtin_prefetch(at + line * LINE);
}

/* Fills a list, which has room for `filled` gradients, with the gradients of the parameters. Returns 1 if the
 * parameters are the known ones and the same parameters have a gradient as before, and otherwise 0. `prefetch` is
 * as for emo_find: the parameters that had a gradient, their moments, and at the end their gradients. */
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

/* Returns whether a dictionary has these keys and values, in this order, and no others. */
int emo_is_dict(const Python *python, void *dictionary, void **keys, void **values, int64_t count) {
    void *key, *value;
    intptr_t place = 0;
    int64_t index = 0;
    while (index < count && python->dict_next(dictionary, &place, &key, &value) &&
           key == keys[index] && value == values[index])
        index++;
    return index == count;
}

/* Collects in `tensors`: parameters, the tensors in their states by each of the names, and gradients. Returns 1,
 * or 0 if a state lacks a tensor. `names` has a row for each stream, with `count` names. */
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

/* Finds tensors of Python, which the caller keeps alive. `found` has four rows of `count` numbers: the address of
 * each tensor; its rows and its columns as a matrix, as in a Job; and its kind. The kind is made of the bits of an
 * element, DLPack's code for the type of an element, and a hash of the shape. It is -1 for a tensor that is not
 * contiguous or not in the CPU's memory. Returns 0 if a tensor cannot be described, 2 if all numbers are equal to
 * `known`, and otherwise 1. `known` may be NULL.
 *
 * `prefetch` has two rows of addresses: torch's descriptions of the tensors, and of their storages. The processor
 * then loads several of them at the same time. An address that is no longer valid does no harm. */
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
            /* A description without strides is of a contiguous tensor. */
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
