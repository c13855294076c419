/* Included by cpu.c, once for each dtype: functions for all rules, and the rules that read one element at a time. */

/* The numbers that are the same for every element of a step. */
typedef struct {
    REAL sign, bound, row_bound, scale, lr, weight_decay, ratio, stay, rate;
    int keeps_all, mode;
    int64_t rule;
    REAL b1, c1, b2, c2, eps; /* c1 = 1 - b1, c2 = 1 - b2, from float64 */
    int64_t first_step;
} NAME(Signal);

INLINE REAL NAME(sign_of)(REAL x) { return __builtin_islessgreater(x, 0) ? COPYSIGN(1, x) : 0; }

INLINE REAL NAME(follow)(REAL from, REAL to, REAL rate) {
    return rate < (REAL)0.5 ? from + rate * (to - from) : to - (to - from) * (1 - rate);
}

/* The gradient that the rule reads: pointing uphill, with "l2" decay. */
INLINE REAL NAME(uphill)(REAL grad, REAL weight, REAL sign, REAL weight_decay, int mode) {
    grad *= sign;
    return mode == L2 ? grad + weight_decay * weight : grad;
}

/* The new weight from a rule's update, with weight decay and learning rate. */
INLINE REAL NAME(move)(REAL weight, REAL update, REAL weight_decay, REAL lr, int mode) {
    if (mode == DECOUPLED) update += weight_decay * weight;
    update *= lr;
    if (mode == ABSOLUTE) update += weight_decay * weight;
    return weight - update;
}

/* These functions read and write streams in REAL or in a narrower kind. */

INLINE REAL NAME(read)(const void *kept, int64_t index, const int kind) {
    if (kind == WIDE) return ((const REAL *)kept)[index];
    return (REAL)from_narrow(((const uint16_t *)kept)[index], kind);
}

INLINE void NAME(keep)(void *kept, int64_t index, REAL moment, const int squares, const int kind) {
    if (kind == WIDE) ((REAL *)kept)[index] = moment;
    else ((uint16_t *)kept)[index] = stored((float)moment, squares, kind);
}

INLINE void NAME(round_to)(void *params, int64_t index, REAL weight, const Kept kept) {
    if (kept.weights == WIDE) ((REAL *)params)[index] = weight;
    else round_one((uint16_t *)params, index, (float)weight, kept);
}

/* The rules that read one element at a time. */
INLINE void NAME(elements)(
    int64_t count, void *restrict params, const void *restrict grads, void *restrict firsts,
    void *restrict seconds, REAL *restrict shadows, const NAME(Signal) *signal, REAL length,
    const int rule, const int mode, const int blends, const Kept kept) {
    const REAL sign = signal->sign, bound = signal->bound, scale = signal->scale, lr = signal->lr;
    const REAL weight_decay = signal->weight_decay, ratio = signal->ratio, stay = signal->stay;
    const REAL rate = signal->rate, b1 = signal->b1, c1 = signal->c1, b2 = signal->b2;
    const REAL c2 = signal->c2, eps = signal->eps;
    const int keeps_all = signal->keeps_all;
#pragma GCC ivdep
    for (int64_t index = 0; index < count; index++) {
        REAL weight = NAME(read)(params, index, kept.weights);
        if (blends) {
            weight = weight * stay + shadows[index] * ratio;
            shadows[index] = NAME(follow)(shadows[index], weight, rate);
        }
        REAL grad = NAME(uphill)(NAME(read)(grads, index, kept.weights), weight, sign, weight_decay, mode);
        REAL update, first = NAME(read)(firsts, index, kept.moments);
        if (rule == ADAM) {
            first = first * b1 + grad * c1;
            REAL second = NAME(read)(seconds, index, kept.moments) * b2 + grad * grad * c2;
            NAME(keep)(firsts, index, first, 0, kept.moments);
            NAME(keep)(seconds, index, second, 1, kept.moments);
            update = first / (SQRT(second) + eps);
        } else {
            REAL mixed = first * b1 + grad * c1;
            NAME(keep)(firsts, index, first * b2 + grad * c2, 0, kept.moments);
            REAL direction = NAME(sign_of)(mixed);
            if (rule == LION) update = direction;
            else if (rule == CAUTIOUS) update = direction == NAME(sign_of)(grad) ? direction : 0;
            else update = mixed / (1 + ABS(mixed)) * length;
        }
        update = (ABS(grad) >= bound) | keeps_all ? update : 0;
        update *= scale;
        weight = NAME(move)(weight, update, weight_decay, lr, mode);
        NAME(round_to)(params, index, weight, kept);
    }
}

#define WITH_MODE(rule, mode, blends)                                                              \
    NAME(elements)(count, params, grads, firsts, seconds, shadows, signal, length, rule, mode, blends, \
                   NOT_NARROW)
#define WITH_RULE(rule)                                                                            \
    do {                                                                                           \
        if (blends) {                                                                              \
            if (signal->mode == DECOUPLED) WITH_MODE(rule, DECOUPLED, 1);                          \
            else if (signal->mode == ABSOLUTE) WITH_MODE(rule, ABSOLUTE, 1);                       \
            else WITH_MODE(rule, L2, 1);                                                           \
        } else {                                                                                   \
            if (signal->mode == DECOUPLED) WITH_MODE(rule, DECOUPLED, 0);                          \
            else if (signal->mode == ABSOLUTE) WITH_MODE(rule, ABSOLUTE, 0);                       \
            else WITH_MODE(rule, L2, 0);                                                           \
        }                                                                                          \
    } while (0)

static void NAME(step_elements)(
    int64_t count, REAL *params, const REAL *grads, REAL *firsts, REAL *seconds, REAL *shadows,
    const NAME(Signal) *signal, REAL length, int rule, int blends) {
    if (rule == ADAM) WITH_RULE(ADAM);
    else if (rule == LION) WITH_RULE(LION);
    else if (rule == CAUTIOUS) WITH_RULE(CAUTIOUS);
    else WITH_RULE(SOFTSIGN);
}

#undef WITH_MODE
#undef WITH_RULE

#if MAY_BE_NARROW
/* The most common steps of narrow numbers, without tiles. Returns 1, or 0 for a step that is not among them. */
static int NAME(step_narrow)(
    int64_t count, void *params, const void *grads, void *firsts, void *seconds,
    const NAME(Signal) *signal, int rule, Kept kept) {
#define NARROW(rule, weights, moments, rounding)                                                   \
    do {                                                                                           \
        const Kept known = {weights, moments, rounding, kept.compensations, kept.place};           \
        NAME(elements)(count, params, grads, firsts, seconds, NULL, signal, 1, rule, DECOUPLED, 0, known); \
    } while (0)
#define WITH_ROUNDING(rule, moments)                                                               \
    do {                                                                                           \
        if (kept.rounding == KAHAN) NARROW(rule, BFLOAT16, moments, KAHAN);                        \
        else if (kept.rounding == STOCHASTIC) NARROW(rule, BFLOAT16, moments, STOCHASTIC);         \
        else NARROW(rule, BFLOAT16, moments, NEAREST);                                             \
    } while (0)
#define WITH_KINDS(rule)                                                                           \
    do {                                                                                           \
        if (kept.weights == WIDE) NARROW(rule, WIDE, BFLOAT16, NEAREST);                           \
        else if (kept.moments == WIDE) WITH_ROUNDING(rule, WIDE);                                  \
        else WITH_ROUNDING(rule, BFLOAT16);                                                        \
    } while (0)
    if (signal->mode != DECOUPLED || kept.weights == FLOAT16 || kept.moments == FLOAT16) return 0;
    if (rule == ADAM) WITH_KINDS(ADAM);
    else if (rule == LION) WITH_KINDS(LION);
    else return 0;
    return 1;
#undef NARROW
#undef WITH_ROUNDING
#undef WITH_KINDS
}
#endif

/* Only the pull to the shadow, for the rules that read all pulled weights before the step. */
static void NAME(blend)(int64_t count, REAL *restrict params, REAL *restrict shadows,
                        const NAME(Signal) *signal) {
    for (int64_t index = 0; index < count; index++) {
        REAL weight = params[index] * signal->stay + shadows[index] * signal->ratio;
        shadows[index] = NAME(follow)(shadows[index], weight, signal->rate);
        params[index] = weight;
    }
}

/* The sum of the squared gradients of a block. */
static double NAME(sum_of_squares)(int64_t count, const REAL *restrict grads,
                                   const REAL *restrict params, const NAME(Signal) *signal) {
    const REAL sign = signal->sign, weight_decay = signal->weight_decay;
    REAL sum = 0;
    if (signal->mode == L2) {
#pragma omp simd reduction(+ : sum)
        for (int64_t index = 0; index < count; index++) {
            REAL grad = NAME(uphill)(grads[index], params[index], sign, weight_decay, L2);
            sum += grad * grad;
        }
    } else {
#pragma omp simd reduction(+ : sum)
        for (int64_t index = 0; index < count; index++) sum += grads[index] * grads[index];
    }
    return sum;
}
