/* Included by cpu.c, once for each dtype: EmoPilot, which measures in one pass and moves in another pass.
 *
 * Both passes cut tensors into blocks that depend only on the sizes of the tensors. The sums of the blocks are
 * added up in the order of the blocks, so that the bits are the same for any number of threads. A thread has the
 * same blocks in both passes. The second pass begins with the last block, which is still in the cache. */

/* The elements of a block. Sums are in the dtype of the computation over parts of ROOM elements, and narrow streams
 * are copied to that dtype, one such part at a time. */
#define PILOT_BLOCK 65536

/* The factors that correct the moments of a tensor for their start at 0. */
typedef struct {
    double steps; /* the number of steps for which they are; -1 before the first tensor */
    REAL first, second;
} NAME(Corrections);

INLINE void NAME(correct)(NAME(Corrections) *found, const Rule *rule, double steps) {
    if (steps == found->steps) return;
    /* For a decay rate of 0, log(0) is minus infinity and the correction is 1. */
    *found = (NAME(Corrections)){steps, (REAL)(-1 / expm1(steps * log(rule->b1))),
                                 (REAL)(-1 / expm1(steps * log(rule->b2)))};
}

INLINE REAL NAME(pilot_direction)(REAL first, REAL second, REAL eps, NAME(Corrections) corrections) {
    return first * corrections.first / (SQRT(second * corrections.second) + eps);
}

/* Adds <g, g>, <g, u>, <u, u> and, if `weighs`, <p, p> of a part to `sums`; u is the last direction. */
INLINE void NAME(measure_part)(
    int64_t count, const REAL *restrict params, const REAL *restrict grads, const REAL *restrict firsts,
    const REAL *restrict seconds, REAL sign, REAL weight_decay, REAL eps, NAME(Corrections) corrections,
    const int mode, const int weighs, double *sums) {
    REAL squares = 0, products = 0, lengths = 0, weights = 0;
#pragma omp simd reduction(+ : squares, products, lengths, weights)
    for (int64_t index = 0; index < count; index++) {
        const REAL weight = weighs || mode == L2 ? params[index] : 0;
        const REAL grad = NAME(uphill)(grads[index], weight, sign, weight_decay, mode);
        const REAL direction = NAME(pilot_direction)(firsts[index], seconds[index], eps, corrections);
        squares += grad * grad;
        products += grad * direction;
        lengths += direction * direction;
        if (weighs) weights += weight * weight;
    }
    sums[0] += squares;
    sums[1] += products;
    sums[2] += lengths;
    sums[3] += weights;
}

/* The numbers that are the same for all elements of a tensor. */
typedef struct {
    REAL sign, weight_decay, eps, gate, b2, c1, c2, length, rate;
    NAME(Corrections) corrections;
} NAME(Flight);

INLINE void NAME(move_part)(
    int64_t count, REAL *restrict params, const REAL *restrict grads, REAL *restrict firsts,
    REAL *restrict seconds, REAL *restrict averages, const NAME(Flight) flight, const int mode,
    const int keeps_average) {
    const REAL decay = mode == DECOUPLED ? flight.length * flight.weight_decay : flight.weight_decay;
#pragma GCC ivdep
    for (int64_t index = 0; index < count; index++) {
        REAL weight = params[index];
        REAL grad = NAME(uphill)(grads[index], weight, flight.sign, flight.weight_decay, mode);
        grad *= flight.gate;
        const REAL first = NAME(follow)(firsts[index], grad, flight.c1);
        const REAL second = seconds[index] * flight.b2 + flight.c2 * grad * grad;
        firsts[index] = first;
        seconds[index] = second;
        REAL change = NAME(pilot_direction)(first, second, flight.eps, flight.corrections) * flight.length;
        if (mode != L2) change += weight * decay;
        weight -= change;
        params[index] = weight;
        if (keeps_average) averages[index] += (weight - averages[index]) * flight.rate;
    }
}

/* A part of a tensor in the pass that measures. */
static void NAME(measure_tile)(const Job *job, const NAME(Tile) *tile, int64_t count,
                               NAME(Corrections) corrections, double *sums) {
    const REAL sign = job->maximize ? -1 : 1, weight_decay = (REAL)job->weight_decay;
    const REAL eps = (REAL)job->rule[0].eps;
#define MEASURE_PART(mode, weighs)                                                                 \
    NAME(measure_part)(count, tile->params, tile->grads, tile->firsts, tile->seconds, sign, weight_decay, eps, \
                       corrections, mode, weighs, sums)
    if (job->mode == L2) MEASURE_PART(L2, 1);
    else if (job->pilot->weighs) MEASURE_PART(DECOUPLED, 1);
    else MEASURE_PART(DECOUPLED, 0);
#undef MEASURE_PART
}

/* A part of a tensor in the pass that moves. */
static void NAME(move_tile)(const Job *job, const NAME(Tile) *tile, REAL *averages, int64_t count,
                            const NAME(Flight) *flight) {
#define MOVE_PART(mode)                                                                            \
    do {                                                                                           \
        if (averages == NULL)                                                                      \
            NAME(move_part)(count, tile->params, tile->grads, tile->firsts, tile->seconds, NULL, *flight, mode, 0); \
        else                                                                                       \
            NAME(move_part)(count, tile->params, tile->grads, tile->firsts, tile->seconds, averages, *flight, \
                            mode, 1);                                                              \
    } while (0)
    if (job->mode == DECOUPLED) MOVE_PART(DECOUPLED);
    else if (job->mode == ABSOLUTE) MOVE_PART(ABSOLUTE);
    else MOVE_PART(L2);
#undef MOVE_PART
}

/* One block of a tensor, in one of the two passes. `corrections` are the ones of the block before. */
static void NAME(pilot_block)(const NAME(Work) *work, int64_t tensor, Share block, NAME(Corrections) *corrections,
                              double *sums) {
    const Job *job = work->job;
    const Pilot *pilot = job->pilot;
    const Rule *rule = work->rule;
    const double steps = *pilot->steps[tensor];
    /* Before its first step a parameter has no direction: step 0 would divide 0 by 0. */
    NAME(correct)(corrections, rule, pilot->measures ? (steps < 1 ? 1 : steps) : steps + 1);
    NAME(Flight) flight = {
        .sign = job->maximize ? -1 : 1,
        .weight_decay = (REAL)job->weight_decay,
        .eps = (REAL)rule->eps,
        .gate = (REAL)pilot->gate,
        .b2 = (REAL)rule->b2,
        .c1 = (REAL)(1.0 - rule->b1),
        .c2 = (REAL)(1.0 - rule->b2),
        .length = pilot->measures ? 0 : ((const REAL *)pilot->lengths)[tensor],
        .rate = (REAL)pilot->rate,
        .corrections = *corrections,
    };
    REAL *averages = pilot->averages == NULL ? NULL : (REAL *)pilot->averages[tensor];
    const int64_t part = work->is_narrow || pilot->measures ? ROOM : PILOT_BLOCK;
    for (int64_t from = block.begin; from < block.end; from += part) {
        const int64_t count = block.end - from < part ? block.end - from : part;
        const NAME(Tile) tile = NAME(open_tile)(work, tensor, from, count, 0, NAME(ALL_STREAMS));
        if (pilot->measures) {
            NAME(measure_tile)(job, &tile, count, *corrections, sums);
        } else {
            NAME(move_tile)(job, &tile, averages == NULL ? NULL : averages + from, count, &flight);
            NAME(close_tile)(work, &tile, tensor, from, count);
        }
    }
}

INLINE int64_t NAME(pilot_blocks)(const Job *job, int64_t tensor) {
    return (size_of(job, tensor) + PILOT_BLOCK - 1) / PILOT_BLOCK;
}

/* All blocks that belong to a thread: a block belongs to the thread in whose share its first element is. */
static void NAME(pilot_share)(const Job *job, const int64_t *starts, const int64_t *first_blocks, Share own,
                              double *sums) {
    const int measures = (int)job->pilot->measures;
    const Rule *rule = &job->rule[0];
    REAL room[4 * ROOM];
    const NAME(Work) work = {
        .job = job,
        .rule = rule,
        .is_narrow = job->param_kind != WIDE || job->grad_kind != WIDE || rule->first_kind != WIDE ||
                     rule->second_kind != WIDE,
        .room = room,
        .tile_room = ROOM,
    };
    NAME(Corrections) corrections = {-1, 0, 0};
    for (int64_t turn = 0; turn < job->tensors; turn++) {
        const int64_t tensor = measures ? turn : job->tensors - 1 - turn;
        const int64_t size = size_of(job, tensor), many = NAME(pilot_blocks)(job, tensor);
        if (starts[tensor] >= own.end || starts[tensor] + size <= own.begin) continue;
        for (int64_t step = 0; step < many; step++) {
            const int64_t place = measures ? step : many - 1 - step, from = place * PILOT_BLOCK;
            if (starts[tensor] + from < own.begin || starts[tensor] + from >= own.end) continue;
            const Share block = {from, size - from < PILOT_BLOCK ? size : from + PILOT_BLOCK};
            NAME(pilot_block)(&work, tensor, block, &corrections, sums + 4 * (first_blocks[tensor] + place));
        }
    }
}

/* Takes one of the two passes; returns 0, or 1 if memory is missing, before anything has changed. */
static int NAME(pilot_pass)(const Job *job) {
    const Pilot *pilot = job->pilot;
    const size_t tensors = (size_t)job->tensors;
    int64_t *first_blocks = malloc(sizeof(int64_t) * (tensors + 1)), *starts = malloc(sizeof(int64_t) * (tensors + 1));
    double *sums = NULL;
    int64_t blocks = 0, total = 0;
    if (first_blocks != NULL && starts != NULL) {
        for (int64_t tensor = 0; tensor < job->tensors; tensor++) {
            first_blocks[tensor] = blocks;
            starts[tensor] = total;
            blocks += NAME(pilot_blocks)(job, tensor);
            total += size_of(job, tensor);
        }
        sums = calloc(4 * (size_t)blocks + 1, sizeof(double));
    }
    if (sums == NULL) {
        free(first_blocks);
        free(starts);
        return 1;
    }
#pragma omp parallel num_threads((int)job->threads)
    {
        /* OpenMP may give fewer threads than `job->threads`. */
        const int64_t thread = omp_get_thread_num(), threads = omp_get_num_threads();
        NAME(pilot_share)(job, starts, first_blocks, share_of(total, thread, threads), sums);
    }
    for (int64_t tensor = 0; tensor < job->tensors; tensor++) {
        if (!pilot->measures) {
            /* Written after all blocks: other threads read the old number of steps. */
            *pilot->steps[tensor] += 1;
            continue;
        }
        pilot->squares[tensor] = 0;
        const double *own = sums + 4 * first_blocks[tensor];
        for (int64_t block = 0; block < NAME(pilot_blocks)(job, tensor); block++, own += 4) {
            for (int kind = 0; kind < 3; kind++) pilot->products[kind] += own[kind];
            pilot->squares[tensor] += own[3];
        }
    }
    free(first_blocks);
    free(starts);
    free(sums);
    return 0;
}

#undef PILOT_BLOCK
