/* Included by cpu.c, once for each dtype: the rule of RefAdamWMiniScheduleFree. */

/* The rule of RefAdamWMiniScheduleFree; `lr` is the learning rate of the tensor. */
INLINE void NAME(ref_elements)(
    int64_t count, REAL *restrict params, const REAL *restrict grads, REAL *restrict firsts,
    REAL *restrict seconds, const NAME(Signal) *signal, REAL lr, REAL share, REAL bound,
    const int mode, const int injects, const int bounds) {
    const REAL sign = signal->sign, weight_decay = signal->weight_decay, eps = signal->eps;
    const REAL b1 = signal->b1, c1 = signal->c1, b2 = signal->b2, c2 = signal->c2;
#pragma GCC ivdep
    for (int64_t index = 0; index < count; index++) {
        REAL weight = params[index];
        REAL grad = NAME(uphill)(grads[index], weight, sign, weight_decay, mode);
        REAL first = firsts[index] * b1 + grad * c1;
        REAL second = seconds[index] * b2 + grad * grad * c2;
        REAL root = SQRT(second);
        /* If the second moment is 0, only eps would be left in the divisor. */
        REAL update = root > 0 ? first / (root + eps) : 0;
        weight = NAME(move)(weight, update, weight_decay, lr, mode);
        if (injects) {
            REAL injected = weight;
            if (bounds) {
                REAL most = root * bound;
                injected = injected > most ? most : injected;
                injected = injected < -most ? -most : injected;
            }
            first = (1 - share) * first + share * injected;
        }
        params[index] = weight;
        firsts[index] = first;
        seconds[index] = second;
    }
}

static void NAME(step_ref)(
    int64_t count, REAL *params, const REAL *grads, REAL *firsts, REAL *seconds,
    const NAME(Signal) *signal, REAL lr, REAL share, REAL bound) {
    const int injects = share > 0, bounds = bound >= 0;
#define REF_ELEMENTS(mode)                                                                         \
    do {                                                                                           \
        if (injects)                                                                               \
            NAME(ref_elements)(count, params, grads, firsts, seconds, signal, lr, share, bound,    \
                               mode, 1, bounds);                                                   \
        else                                                                                       \
            NAME(ref_elements)(count, params, grads, firsts, seconds, signal, lr, share, bound,    \
                               mode, 0, 0);                                                        \
    } while (0)
    if (signal->mode == DECOUPLED) REF_ELEMENTS(DECOUPLED);
    else if (signal->mode == ABSOLUTE) REF_ELEMENTS(ABSOLUTE);
    else REF_ELEMENTS(L2);
#undef REF_ELEMENTS
}
