/* Included by cpu.c, once for each dtype: the blocks of EmoPilot, which measures in one pass and moves in another pass.
 *
 * The pass that measures adds up <g, g> of the gradients. The pass that moves adds up <g, m> and <m, m> of the
 * gradients and the first moments m before the step, for the next step. The squares of the weights are added up
 * after the weights have moved, or by the pass that measures where the weights have changed since then.
 *
 * Sums are in the dtype of the computation over parts of at most ROOM elements. Narrow streams are copied to that
 * dtype, one such part at a time. */

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

/* Adam's direction. */
INLINE REAL NAME(pilot_direction)(REAL first, REAL second, REAL eps, NAME(Corrections) corrections) {
    return first * corrections.first / (SQRT(second * corrections.second) + eps);
}

/* Returns the sum of the squares of the weights of a part. It is one function for both passes, so that the bits are
 * the same in both of them. */
static __attribute__((noinline)) double NAME(weigh_part)(int64_t count, const REAL *params) {
    REAL squares = 0;
#pragma omp simd reduction(+ : squares)
    for (int64_t index = 0; index < count; index++) squares += params[index] * params[index];
    return squares;
}

/* Returns <g, g> of a part. */
INLINE double NAME(measure_part)(int64_t count, const REAL *params, const REAL *grads, REAL sign, REAL weight_decay,
                                 const int mode) {
    REAL squares = 0;
#pragma omp simd reduction(+ : squares)
    for (int64_t index = 0; index < count; index++) {
        const REAL grad = NAME(uphill)(grads[index], mode == L2 ? params[index] : 0, sign, weight_decay, mode);
        squares += grad * grad;
    }
    return squares;
}

/* The numbers that are the same for all elements of a tensor. */
typedef struct {
    REAL sign, weight_decay, eps, gate, b2, c1, c2, length, rate;
    NAME(Corrections) corrections;
} NAME(Flight);

/* Returns the numbers of a tensor. `found` are the corrections of the block before. */
static NAME(Flight) NAME(flight_of)(const Job *job, int64_t tensor, NAME(Corrections) *found) {
    const Pilot *pilot = job->pilot;
    const Rule *rule = &job->rule[0];
    NAME(correct)(found, rule, *pilot->steps[tensor] + 1);
    return (NAME(Flight)){
        .sign = job->maximize ? -1 : 1,
        .weight_decay = (REAL)job->weight_decay,
        .eps = (REAL)rule->eps,
        .gate = (REAL)pilot->gate,
        .b2 = (REAL)rule->b2,
        .c1 = (REAL)(1.0 - rule->b1),
        .c2 = (REAL)(1.0 - rule->b2),
        .length = ((const REAL *)pilot->lengths)[tensor],
        .rate = (REAL)pilot->rate,
        .corrections = *found,
    };
}

/* Changes a weight, by weight decay too, and moves the average of the weight. */
INLINE void NAME(change_weight)(REAL *restrict params, REAL *restrict averages, int64_t index, REAL change, REAL decay,
                                REAL rate, const int mode, const int keeps_average) {
    if (mode != L2) change += params[index] * decay;
    params[index] -= change;
    if (keeps_average) averages[index] += (params[index] - averages[index]) * rate;
}

/* Moves a part, and adds <g, m> and <m, m> to the sums; m is the first moment before the step. */
INLINE void NAME(move_part)(
    int64_t count, REAL *restrict params, const REAL *restrict grads, REAL *restrict firsts,
    REAL *restrict seconds, REAL *restrict averages, const NAME(Flight) flight, const int mode,
    const int keeps_average, double *sums) {
    const REAL decay = mode == DECOUPLED ? flight.length * flight.weight_decay : flight.weight_decay;
    REAL products = 0, lengths = 0;
#pragma omp simd reduction(+ : products, lengths)
    for (int64_t index = 0; index < count; index++) {
        const REAL weight = params[index];
        const REAL grad = NAME(uphill)(grads[index], weight, flight.sign, flight.weight_decay, mode);
        const REAL last = firsts[index];
        products += grad * last;
        lengths += last * last;
        const REAL gated = grad * flight.gate;
        const REAL first = NAME(follow)(last, gated, flight.c1);
        const REAL second = seconds[index] * flight.b2 + flight.c2 * gated * gated;
        firsts[index] = first;
        seconds[index] = second;
        const REAL change = NAME(pilot_direction)(first, second, flight.eps, flight.corrections) * flight.length;
        NAME(change_weight)(params, averages, index, change, decay, flight.rate, mode, keeps_average);
    }
    sums[1] += products;
    sums[2] += lengths;
}

/* A part of a tensor in the pass that moves. */
static void NAME(move_tile)(const Job *job, const NAME(Tile) *tile, REAL *averages, int64_t count,
                            const NAME(Flight) *flight, double *sums) {
#define MOVE_PART(mode)                                                                            \
    do {                                                                                           \
        if (averages == NULL)                                                                      \
            NAME(move_part)(count, tile->params, tile->grads, tile->firsts, tile->seconds, NULL, *flight, mode, 0, \
                            sums);                                                                 \
        else                                                                                       \
            NAME(move_part)(count, tile->params, tile->grads, tile->firsts, tile->seconds, averages, *flight, \
                            mode, 1, sums);                                                        \
    } while (0)
    if (job->mode == DECOUPLED) MOVE_PART(DECOUPLED);
    else if (job->mode == ABSOLUTE) MOVE_PART(ABSOLUTE);
    else MOVE_PART(L2);
#undef MOVE_PART
}

/* Whether the pass that measures adds up the squares of a tensor's weights. */
INLINE int NAME(weighs)(const Pilot *pilot, int64_t tensor) {
    return pilot->weighs && (pilot->known == NULL || !pilot->known[tensor]);
}

/* One block of a tensor in the pass that measures. */
static void NAME(measure_block)(const NAME(Work) *work, int64_t tensor, Share block, double *sums) {
    const Job *job = work->job;
    const int weighs = NAME(weighs)(job->pilot, tensor), needed = weighs || job->mode == L2;
    const REAL sign = job->maximize ? -1 : 1, weight_decay = (REAL)job->weight_decay;
    for (int64_t from = block.begin; from < block.end; from += ROOM) {
        const int64_t count = block.end - from < ROOM ? block.end - from : ROOM;
        const NAME(Tile) tile = NAME(open_tile)(work, tensor, from, count, 0, NAME(GRADIENTS) | needed);
        sums[0] += job->mode == L2 ? NAME(measure_part)(count, tile.params, tile.grads, sign, weight_decay, L2)
                                   : NAME(measure_part)(count, NULL, tile.grads, sign, weight_decay, DECOUPLED);
        if (weighs) sums[3] += NAME(weigh_part)(count, tile.params);
    }
}

/* One block of a tensor in the pass that moves. `found` are the corrections of the block before. */
static void NAME(move_block)(const NAME(Work) *work, int64_t tensor, Share block, NAME(Corrections) *found,
                             double *sums) {
    const Job *job = work->job;
    const Pilot *pilot = job->pilot;
    const NAME(Flight) flight = NAME(flight_of)(job, tensor, found);
    REAL *averages = pilot->averages == NULL ? NULL : (REAL *)pilot->averages[tensor];
    for (int64_t from = block.begin; from < block.end; from += ROOM) {
        const int64_t count = block.end - from < ROOM ? block.end - from : ROOM;
        const NAME(Tile) tile = NAME(open_tile)(work, tensor, from, count, 0, NAME(ALL_STREAMS));
        NAME(move_tile)(job, &tile, averages == NULL ? NULL : averages + from, count, &flight, sums);
        if (pilot->weighs) sums[3] += NAME(weigh_part)(count, tile.params);
        NAME(close_tile)(work, &tile, tensor, from, count);
    }
}
