/* Included by cpu.c, once for each dtype: the rules that step by the sign of a gradient or of a momentum. */

INLINE void NAME(sign_elements)(
    int64_t count, REAL *restrict params, const REAL *restrict grads, REAL *restrict firsts,
    REAL *restrict shadows, const NAME(Signal) *signal, REAL share, REAL weights, const int rule,
    const int mode, const int blends, const int makes) {
    const REAL sign = signal->sign, scale = signal->scale, lr = signal->lr;
    const REAL weight_decay = signal->weight_decay, ratio = signal->ratio, stay = signal->stay;
    const REAL rate = signal->rate, rest = 1 - share;
#pragma GCC ivdep
    for (int64_t index = 0; index < count; index++) {
        REAL weight = params[index] * weights;
        if (makes) shadows[index] = weight;
        if (blends) {
            weight = weight * stay + shadows[index] * ratio;
            shadows[index] = NAME(follow)(shadows[index], weight, rate);
        }
        REAL direction = NAME(uphill)(grads[index], weight, sign, weight_decay, mode);
        if (rule == FRESH) {
            direction = firsts[index] * rest + direction * share;
            firsts[index] = direction;
        }
        params[index] = NAME(move)(weight, NAME(sign_of)(direction) * scale, weight_decay, lr, mode);
    }
}

/* The step of a part of a tensor. `makes` is 1 to make the shadow a copy of the weights. */
static void NAME(step_signs)(
    const Job *job, int64_t count, REAL *params, const REAL *grads, REAL *firsts, REAL *shadows,
    const NAME(Signal) *signal, int rule, int blends, int makes) {
    const REAL share = rule == FRESH ? *(const REAL *)job->share : 0, weights = (REAL)job->weights;
#define SIGN_ELEMENTS(rule, mode, blends, makes)                                                   \
    NAME(sign_elements)(count, params, grads, firsts, shadows, signal, share, weights, rule, mode, \
                        blends, makes)
#define SIGNS_WITH(rule)                                                                           \
    do {                                                                                           \
        if (blends || makes) {                                                                     \
            if (signal->mode == DECOUPLED) SIGN_ELEMENTS(rule, DECOUPLED, blends, makes);          \
            else if (signal->mode == ABSOLUTE) SIGN_ELEMENTS(rule, ABSOLUTE, blends, makes);       \
            else SIGN_ELEMENTS(rule, L2, blends, makes);                                           \
        } else {                                                                                   \
            if (signal->mode == DECOUPLED) SIGN_ELEMENTS(rule, DECOUPLED, 0, 0);                   \
            else if (signal->mode == ABSOLUTE) SIGN_ELEMENTS(rule, ABSOLUTE, 0, 0);                \
            else SIGN_ELEMENTS(rule, L2, 0, 0);                                                    \
        }                                                                                          \
    } while (0)
    if (rule == FRESH) SIGNS_WITH(FRESH);
    else SIGNS_WITH(SIGN);
#undef SIGN_ELEMENTS
#undef SIGNS_WITH
}
