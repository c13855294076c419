/* Included by cpu.c, once for each dtype. */

/* What is the same for every element of a step. */
typedef struct {
    REAL sign, bound, row_bound, scale, lr, weight_decay, ratio, stay, rate;
    int keeps_all, mode;
    int64_t rule;
    REAL b1, c1, b2, c2, eps; /* c1 = 1 - b1, c2 = 1 - b2, from float64 */
    int64_t first_step;
} NAME(Signal);

INLINE REAL NAME(sign_of)(REAL x) { return (REAL)((x > 0) - (x < 0)); }

INLINE REAL NAME(follow)(REAL from, REAL to, REAL rate) {
    return rate < (REAL)0.5 ? from + rate * (to - from) : to - (to - from) * (1 - rate);
}

/* The gradient as the rule sees it. */
INLINE REAL NAME(uphill)(REAL grad, REAL weight, REAL sign, REAL weight_decay, int mode) {
    grad *= sign;
    return mode == L2 ? grad + weight_decay * weight : grad;
}

/* Weight decay and learning rate: from a rule's update to the new weight. */
INLINE REAL NAME(move)(REAL weight, REAL update, REAL weight_decay, REAL lr, int mode) {
    if (mode == DECOUPLED) update += weight_decay * weight;
    update *= lr;
    if (mode == ABSOLUTE) update += weight_decay * weight;
    return weight - update;
}

/* The rules that look at one element at a time. */
INLINE void NAME(elements)(
    int64_t count, REAL *restrict params, const REAL *restrict grads, REAL *restrict firsts,
    REAL *restrict seconds, REAL *restrict shadows, const NAME(Signal) *signal, REAL length,
    const int rule, const int mode, const int blends) {
    const REAL sign = signal->sign, bound = signal->bound, scale = signal->scale, lr = signal->lr;
    const REAL weight_decay = signal->weight_decay, ratio = signal->ratio, stay = signal->stay;
    const REAL rate = signal->rate, b1 = signal->b1, c1 = signal->c1, b2 = signal->b2;
    const REAL c2 = signal->c2, eps = signal->eps;
    const int keeps_all = signal->keeps_all;
#pragma GCC ivdep
    for (int64_t index = 0; index < count; index++) {
        REAL weight = params[index];
        if (blends) {
            weight = weight * stay + shadows[index] * ratio;
            shadows[index] = NAME(follow)(shadows[index], weight, rate);
        }
        REAL grad = NAME(uphill)(grads[index], weight, sign, weight_decay, mode);
        REAL update;
        if (rule == ADAM) {
            REAL first = firsts[index] * b1 + grad * c1;
            REAL second = seconds[index] * b2 + grad * grad * c2;
            firsts[index] = first;
            seconds[index] = second;
            update = first / (SQRT(second) + eps);
        } else {
            REAL mixed = firsts[index] * b1 + grad * c1;
            firsts[index] = firsts[index] * b2 + grad * c2;
            REAL direction = NAME(sign_of)(mixed);
            if (rule == LION) update = direction;
            else if (rule == CAUTIOUS) update = direction == NAME(sign_of)(grad) ? direction : 0;
            else update = mixed / (1 + ABS(mixed)) * length;
        }
        update = (ABS(grad) >= bound) | keeps_all ? update : 0;
        update *= scale;
        params[index] = NAME(move)(weight, update, weight_decay, lr, mode);
    }
}

#define WITH_MODE(rule, mode, blends)                                                              \
    NAME(elements)(count, params, grads, firsts, seconds, shadows, signal, length, rule, mode, blends)
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

/* The rule of RefAdamWMiniScheduleFree, with the learning rate of this tensor. */
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
        /* Where the second moment is 0, eps alone would divide. */
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

/* The pull to the shadow alone, for what must see the pulled weights before it steps. */
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

/* The squares of a block of rows: their means to the rows' averages, their sums over columns to `narrow`,
 * their sum returned. A row that the filter stops is marked by a negative average, until the step is taken.
 * `ahead` says that the step follows while all is still in the cache. */
INLINE double NAME(gather_rows)(
    int64_t rows, int64_t columns, const REAL *restrict params, const REAL *restrict grads,
    REAL *restrict averages, REAL *restrict narrow, const NAME(Signal) *signal, int ahead,
    const int mode) {
    const REAL sign = signal->sign, weight_decay = signal->weight_decay, eps = signal->eps;
    double total = 0;
    memset(narrow, 0, sizeof(REAL) * (size_t)columns);
    for (int64_t row = 0; row < rows; row++) {
        const REAL *grad_row = grads + row * columns, *param_row = params + row * columns;
        double sum = 0;
        for (int64_t start = 0; start < columns; start += 1024) {
            int64_t stop = start + 1024 < columns ? start + 1024 : columns;
            REAL part = 0;
            if (ahead)
                for (int64_t column = start; column < stop; column += LINE / (int64_t)sizeof(REAL))
                    __builtin_prefetch(param_row + column, 1, 2);
#pragma omp simd reduction(+ : part)
            for (int64_t column = start; column < stop; column++) {
                REAL weight = mode == L2 ? param_row[column] : 0;
                REAL grad = NAME(uphill)(grad_row[column], weight, sign, weight_decay, mode);
                REAL square = grad * grad;
                part += square;
                narrow[column] += square;
            }
            sum += part;
        }
        REAL mean = (REAL)(sum / (double)columns) + eps;
        REAL average = averages[row] * signal->b1 + SQRT(mean) * signal->c1;
        int stops = !signal->keeps_all && !(mean > signal->row_bound);
        averages[row] = stops ? -ABS(average) : average;
        total += sum;
    }
    return total;
}

/* Sums of neighbours, half as many as before. */
INLINE void NAME(add_pairs)(int64_t count, REAL *restrict to, const REAL *restrict from) {
    for (int64_t index = 0; index < count; index++) to[index] = from[2 * index] + from[2 * index + 1];
}

/* The same for few columns, a known number that divides LANES, and at most ROWS rows: sums lie side by side
 * in vectors. */
INLINE double NAME(gather_few)(
    int64_t rows, const int64_t columns, const REAL *restrict grad, REAL *restrict averages,
    REAL *restrict narrow, const NAME(Signal) *signal) {
    const REAL eps = signal->eps, b1 = signal->b1, c1 = signal->c1, row_bound = signal->row_bound;
    const int keeps_all = signal->keeps_all;
    REAL squares[ROWS * MOST_FEW], pairs[ROWS * MOST_FEW / 2], lanes[LANES];
    if (rows == ROWS) {
        for (int64_t index = 0; index < ROWS * columns; index++) squares[index] = grad[index] * grad[index];
    } else {
        memset(squares, 0, sizeof(squares));
        for (int64_t index = 0; index < rows * columns; index++) squares[index] = grad[index] * grad[index];
    }
    for (int64_t lane = 0; lane < LANES; lane++) lanes[lane] = squares[lane];
    for (int64_t start = LANES; start < ROWS * columns; start += LANES)
        for (int64_t lane = 0; lane < LANES; lane++) lanes[lane] += squares[start + lane];
    for (int64_t half = LANES / 2; half >= columns; half /= 2)
        for (int64_t lane = 0; lane < half; lane++) lanes[lane] += lanes[lane + half];
    double total = 0;
    for (int64_t column = 0; column < columns; column++) {
        narrow[column] = lanes[column];
        total += lanes[column];
    }
    if (columns == 16) {
        NAME(add_pairs)(ROWS * 8, pairs, squares);
        NAME(add_pairs)(ROWS * 4, squares, pairs);
        NAME(add_pairs)(ROWS * 2, pairs, squares);
        NAME(add_pairs)(ROWS, squares, pairs);
    } else if (columns == 8) {
        NAME(add_pairs)(ROWS * 4, pairs, squares);
        NAME(add_pairs)(ROWS * 2, squares, pairs);
        NAME(add_pairs)(ROWS, pairs, squares);
    } else {
        NAME(add_pairs)(ROWS * 2, pairs, squares);
        NAME(add_pairs)(ROWS, squares, pairs);
    }
    const REAL *row_sums = columns == 8 ? pairs : squares;
    for (int64_t row = 0; row < rows; row++) {
        REAL mean = row_sums[row] / (REAL)columns + eps;
        REAL average = averages[row] * b1 + SQRT(mean) * c1;
        int stops = !keeps_all & !(mean > row_bound);
        averages[row] = stops ? -ABS(average) : average;
    }
    return total;
}

/* What is known of a block of rows before the step: see `gather_rows`. */
static double NAME(gather)(
    int64_t rows, int64_t columns, const REAL *params, const REAL *grads, REAL *averages, REAL *narrow,
    const NAME(Signal) *signal, int ahead) {
#define GATHER(mode)                                                                               \
    NAME(gather_rows)(rows, columns, params, grads, averages, narrow, signal, ahead, mode)
    if (signal->mode == L2) return GATHER(L2);
    /* Adapters have few columns: there a known number saves most of the time. */
    switch (columns) {
    case 4: return NAME(gather_few)(rows, 4, grads, averages, narrow, signal);
    case 8: return NAME(gather_few)(rows, 8, grads, averages, narrow, signal);
    case 16: return NAME(gather_few)(rows, 16, grads, averages, narrow, signal);
    default: return GATHER(DECOUPLED);
    }
#undef GATHER
}

/* The sums over columns to their means, kept in `means`, and to the columns' averages. Says whether the
 * filter keeps every column. */
static int NAME(settle_columns)(int64_t rows, int64_t columns, const double *restrict sums,
                                REAL *restrict means, REAL *restrict averages,
                                const NAME(Signal) *signal) {
    int keeps = 1;
    for (int64_t column = 0; column < columns; column++) {
        REAL mean = (REAL)(sums[column] / (double)rows) + signal->eps;
        means[column] = mean;
        keeps &= mean > signal->row_bound;
        averages[column] = averages[column] * signal->b1 + SQRT(mean) * signal->c1;
    }
    return keeps | signal->keeps_all;
}

/* The step of some rows, by their averages and the roots of those of the columns. */
INLINE void NAME(factor_rows)(
    int64_t rows, int64_t columns, REAL *restrict params, const REAL *restrict grads,
    REAL *restrict row_averages, const REAL *restrict column_roots, const REAL *restrict means,
    REAL *restrict shadows, const NAME(Signal) *signal, REAL length, const int keeps_columns,
    const int mode, const int blends, const int first) {
    const REAL sign = signal->sign, scale = signal->scale, lr = signal->lr, eps = signal->eps;
    const REAL weight_decay = signal->weight_decay, ratio = signal->ratio, stay = signal->stay;
    const REAL rate = signal->rate, row_bound = signal->row_bound, c1 = signal->c1;
    const int softens = signal->first_step == FIRST_SOFTSIGN;
    for (int64_t row = 0; row < rows; row++) {
        const int keeps_row = !signbit(row_averages[row]);
        row_averages[row] = ABS(row_averages[row]);
        const REAL row_root = SQRT(row_averages[row]);
        REAL *restrict param_row = params + row * columns;
        REAL *restrict shadow_row = blends ? shadows + row * columns : shadows;
        const REAL *restrict grad_row = grads + row * columns;
#pragma GCC ivdep
        for (int64_t column = 0; column < columns; column++) {
            REAL weight = param_row[column];
            if (blends) {
                weight = weight * stay + shadow_row[column] * ratio;
                shadow_row[column] = NAME(follow)(shadow_row[column], weight, rate);
            }
            REAL grad = NAME(uphill)(grad_row[column], weight, sign, weight_decay, mode);
            if (first) {
                REAL mixed = grad * c1, direction = NAME(sign_of)(mixed);
                REAL cautious = direction == NAME(sign_of)(grad) ? direction : 0;
                REAL softened = mixed / (1 + ABS(mixed)) * length;
                weight -= (softens ? softened : cautious) * lr;
            }
            REAL update = grad / (row_root * column_roots[column] + eps);
            if (!keeps_columns) update = keeps_row & (means[column] > row_bound) ? update : 0;
            update *= scale;
            param_row[column] = NAME(move)(weight, update, weight_decay, lr, mode);
        }
    }
}

/* The same for few columns where the filter keeps all: without the shadow and a first step. */
INLINE void NAME(factor_few)(
    int64_t rows, const int64_t columns, REAL *restrict params, const REAL *restrict grads,
    const REAL *restrict row_averages, const REAL *restrict column_roots, const NAME(Signal) *signal) {
    const REAL sign = signal->sign, scale = signal->scale, lr = signal->lr, eps = signal->eps;
    const REAL weight_decay = signal->weight_decay;
    REAL row_roots[ROWS], roots[ROWS * MOST_FEW];
    for (int64_t block = 0; block < rows; block += ROWS) {
        const int64_t many = rows - block < ROWS ? rows - block : ROWS;
        for (int64_t row = 0; row < many; row++) row_roots[row] = SQRT(row_averages[block + row]);
        for (int64_t row = 0; row < many; row++)
            for (int64_t column = 0; column < columns; column++)
                roots[row * columns + column] = row_roots[row] * column_roots[column];
        REAL *restrict param = params + block * columns;
        const REAL *restrict grad = grads + block * columns;
        for (int64_t index = 0; index < many * columns; index++) {
            REAL update = grad[index] * sign / (roots[index] + eps) * scale;
            param[index] = NAME(move)(param[index], update, weight_decay, lr, DECOUPLED);
        }
    }
}

static void NAME(factor)(
    int64_t rows, int64_t columns, REAL *params, const REAL *grads, REAL *row_averages,
    const REAL *column_roots, const REAL *means, REAL *shadows, const NAME(Signal) *signal,
    REAL length, int keeps_columns, int blends) {
    const int first = signal->first_step != NO_FIRST;
#define FACTOR(keeps_columns, mode, blends, first)                                        \
    NAME(factor_rows)(rows, columns, params, grads, row_averages, column_roots, means, shadows, \
                      signal, length, keeps_columns, mode, blends, first)
#define FACTOR_FEW(columns)                                                                        \
    NAME(factor_few)(rows, columns, params, grads, row_averages, column_roots, signal)
    if (signal->mode == L2) {
        if (first) FACTOR(keeps_columns, L2, 0, 1);
        else FACTOR(keeps_columns, L2, 0, 0);
    } else if (signal->mode == ABSOLUTE) {
        if (blends) FACTOR(keeps_columns, ABSOLUTE, 1, first);
        else FACTOR(keeps_columns, ABSOLUTE, 0, first);
    } else if (first) {
        if (blends) FACTOR(1, DECOUPLED, 1, 1);
        else FACTOR(1, DECOUPLED, 0, 1);
    } else if (blends) {
        FACTOR(keeps_columns, DECOUPLED, 1, 0);
    } else if (!keeps_columns) {
        FACTOR(0, DECOUPLED, 0, 0);
    } else {
        switch (columns) {
        case 4: FACTOR_FEW(4); break;
        case 8: FACTOR_FEW(8); break;
        case 16: FACTOR_FEW(16); break;
        default: FACTOR(1, DECOUPLED, 0, 0);
        }
    }
#undef FACTOR
#undef FACTOR_FEW
}

/* What the threads share. A tensor of which several have a part is shared; its sums are kept by blocks. */
typedef struct {
    const Job *job;
    const Rule *rule;
    NAME(Signal) signal, vector_signal; /* the latter filters vectors where the rule has factors */
    int64_t shares;                     /* into how many the elements are cut: one for each thread */
    int64_t *starts;                    /* of each tensor, and the end of all */
    int64_t longest;                    /* the most columns */
    int64_t *squares_at, *columns_at;   /* where a shared tensor's sums begin, in the next two */
    double *squares;                    /* of each block */
    REAL *column_squares;               /* of each block, for each column */
    double *sums;                       /* over columns, for each share */
    REAL *means;                        /* of columns: for each share those of a whole tensor, those of the
                                           shared one that begins there, and room for others */
    int *keeps;                         /* whether a share's columns of its first and its last tensor, if
                                           those are shared, are all kept by the filter */
    REAL *norms;                        /* of gradients, smoothed: the new ones */
    int blends_before;
} NAME(Work);

INLINE double *NAME(sums_of)(const NAME(Work) *work, int64_t own) {
    return work->sums + own * work->longest;
}

INLINE REAL *NAME(means_of)(const NAME(Work) *work, int64_t own, int which) {
    return work->means + (own * 3 + which) * work->longest;
}

static int NAME(has_factors)(const NAME(Work) *work, int64_t tensor) {
    return work->rule->kind == FACTORS && work->job->columns[tensor] > 0;
}

static int NAME(needs_norm)(const NAME(Work) *work) {
    return work->rule->kind == SOFTSIGN || work->rule->kind == REF;
}

/* The elements of a block of a tensor; where there are no sums, a line of cache or more. */
INLINE int64_t NAME(unit_of)(const NAME(Work) *work, int64_t tensor) {
    const int64_t columns = work->job->columns[tensor];
    if (NAME(has_factors)(work, tensor)) return rows_of_block(columns) * columns;
    return NAME(needs_norm)(work) ? VECTOR_BLOCK : 64;
}

INLINE int64_t NAME(blocks_of)(const NAME(Work) *work, int64_t tensor) {
    const int64_t unit = NAME(unit_of)(work, tensor);
    return (size_of(work->job, tensor) + unit - 1) / unit;
}

/* The elements of a tensor that belong to a share. */
INLINE Share NAME(part_of)(const NAME(Work) *work, int64_t tensor, int64_t own) {
    int64_t start = work->starts[tensor], size = size_of(work->job, tensor);
    int64_t unit = NAME(unit_of)(work, tensor);
    Share share = share_of(work->starts[work->job->tensors], own, work->shares);
    Share part = {cut(share.begin, start, size, unit), cut(share.end, start, size, unit)};
    return part;
}

/* The norm of the gradient of a shared tensor. */
static REAL NAME(norm_of)(const NAME(Work) *work, int64_t tensor) {
    const double *squares = work->squares + work->squares_at[tensor];
    const int64_t blocks = NAME(blocks_of)(work, tensor);
    double sum = 0;
    for (int64_t block = 0; block < blocks; block++) sum += squares[block];
    return (REAL)sqrt(sum);
}

#define POINTERS(work, tensor, from)                                                               \
    const Job *job = (work)->job;                                                                  \
    REAL *params = (REAL *)job->params[tensor] + (from);                                           \
    REAL *grads = (REAL *)job->grads[tensor] + (from);                                             \
    REAL *shadows = job->shadows ? (REAL *)job->shadows[tensor] + (from) : NULL;                   \
    REAL *firsts = (REAL *)(work)->rule->first[tensor];                                            \
    REAL *seconds = (REAL *)(work)->rule->second[tensor];                                          \
    const int wakes = shadows != NULL && (work)->signal.ratio > 0;                                 \
    const int blends = wakes && *job->shadows_exist[tensor] && !(work)->blends_before

/* The step of a part of a tensor by a learning rate from the norm of its gradient. */
static void NAME(finish_ref)(const NAME(Work) *work, int64_t tensor, Share part, REAL norm) {
    const Job *job = work->job;
    const REAL before = *(const REAL *)job->norms[tensor], factor = (REAL)job->norm_factor;
    if (!isfinite(norm)) {
        /* Nothing is changed. */
        if (part.begin == 0) work->norms[tensor] = before;
        return;
    }
    const REAL smoothed = before < 0 ? norm : (REAL)(1.0 - job->norm_factor) * before + factor * norm;
    REAL lr = work->signal.lr * smoothed / (norm + (REAL)1e-12);
    if (lr < (REAL)job->least_lr) lr = (REAL)job->least_lr;
    if (lr > (REAL)job->most_lr) lr = (REAL)job->most_lr;
    if (!(work->signal.lr > 0)) lr = 0;
    int64_t from = part.begin;
    NAME(step_ref)(part.end - from, (REAL *)job->params[tensor] + from,
                   (const REAL *)job->grads[tensor] + from, (REAL *)work->rule->first[tensor] + from,
                   (REAL *)work->rule->second[tensor] + from, &work->signal, lr,
                   *(const REAL *)job->share, (REAL)job->injection_bound);
    /* Written at the end: other threads still read the one before. */
    if (part.begin == 0) work->norms[tensor] = smoothed;
}

/* The step of a part of a tensor, once all is known of the whole. */
static void NAME(finish)(const NAME(Work) *work, int64_t tensor, Share part, REAL norm,
                         const REAL *means, int keeps, int64_t own) {
    if (work->rule->kind == REF) {
        NAME(finish_ref)(work, tensor, part, norm);
        return;
    }
    POINTERS(work, tensor, part.begin);
    const REAL length = norm + work->signal.eps;
    int64_t columns = job->columns[tensor], count = part.end - part.begin;
    if (NAME(has_factors)(work, tensor)) {
        if (!work->signal.keeps_all)
            for (int64_t row = 0; row < count / columns; row++)
                keeps &= !signbit(firsts[part.begin / columns + row]);
        REAL *roots = NAME(means_of)(work, own, 2);
        for (int64_t column = 0; column < columns; column++) roots[column] = SQRT(seconds[column]);
        NAME(factor)(count / columns, columns, params, grads, firsts + part.begin / columns, roots,
                     means, shadows, &work->signal, length, keeps, blends);
        return;
    }
    const NAME(Signal) *signal = work->rule->kind == FACTORS ? &work->vector_signal : &work->signal;
    int rule = work->rule->kind == FACTORS ? ADAM : (int)work->rule->kind;
    NAME(step_elements)(count, params, grads, firsts + part.begin, seconds ? seconds + part.begin : NULL,
                        shadows, signal, length, rule, blends);
}

/* The sums of a matrix, or of the part of one: by blocks where it is shared, else all of them, and the
 * columns' means with them. Returns the sum of squares of what is whole. */
static double NAME(begin_matrix)(const NAME(Work) *work, int64_t tensor, Share part, int64_t own,
                                 int *keeps) {
    POINTERS(work, tensor, part.begin);
    const int64_t columns = job->columns[tensor], rows = (part.end - part.begin) / columns;
    const int64_t unit = rows_of_block(columns), first_row = part.begin / columns;
    const int is_whole = part.end - part.begin == size_of(job, tensor), ahead = rows * columns <= CACHED;
    REAL *narrow = NAME(means_of)(work, own, 2);
    double *sums = NAME(sums_of)(work, own), *block_squares = NULL, squares = 0;
    (void)shadows, (void)blends;
    if (is_whole) {
        memset(sums, 0, sizeof(double) * (size_t)columns);
    } else {
        narrow = work->column_squares + work->columns_at[tensor] + first_row / unit * columns;
        block_squares = work->squares + work->squares_at[tensor] + first_row / unit;
    }
    for (int64_t row = 0; row < rows; row += unit) {
        const int64_t many = rows - row < unit ? rows - row : unit;
        const double square = NAME(gather)(many, columns, params + row * columns, grads + row * columns,
                                           firsts + first_row + row, narrow, &work->signal, ahead);
        if (is_whole) {
            for (int64_t column = 0; column < columns; column++) sums[column] += narrow[column];
            squares += square;
        } else {
            narrow += columns;
            *block_squares++ = square;
        }
    }
    if (is_whole)
        *keeps = NAME(settle_columns)(rows, columns, sums, NAME(means_of)(work, own, 0), seconds,
                                      &work->signal);
    return squares;
}

/* What can be done of a part before the other threads have seen theirs; all of it, for most. */
static void NAME(begin)(const NAME(Work) *work, int64_t tensor, Share part, int64_t own) {
    POINTERS(work, tensor, part.begin);
    const int64_t count = part.end - part.begin;
    const int is_whole = count == size_of(job, tensor);
    if (wakes && !*job->shadows_exist[tensor]) memcpy(shadows, params, sizeof(REAL) * (size_t)count);
    else if (wakes && work->blends_before) NAME(blend)(count, params, shadows, &work->signal);
    (void)blends, (void)firsts, (void)seconds;
    double squares = 0;
    int keeps = 1;
    if (NAME(has_factors)(work, tensor)) {
        squares = NAME(begin_matrix)(work, tensor, part, own, &keeps);
    } else if (NAME(needs_norm)(work)) {
        double *kept = is_whole ? NULL : work->squares + work->squares_at[tensor] + part.begin / VECTOR_BLOCK;
        for (int64_t block = 0; block < count; block += VECTOR_BLOCK) {
            const int64_t many = count - block < VECTOR_BLOCK ? count - block : VECTOR_BLOCK;
            const double square = NAME(sum_of_squares)(many, grads + block, params + block, &work->signal);
            if (is_whole) squares += square;
            else *kept++ = square;
        }
    } else {
        NAME(finish)(work, tensor, part, 0, NULL, 1, own);
        return;
    }
    if (is_whole)
        NAME(finish)(work, tensor, part, (REAL)sqrt(squares), NAME(means_of)(work, own, 0), keeps, own);
}

/* The share that a shared tensor begins in. */
INLINE int64_t NAME(owner_of)(const NAME(Work) *work, int64_t tensor, int64_t own) {
    while (NAME(part_of)(work, tensor, own).begin > 0) own--;
    return own;
}

/* Some columns of a shared tensor: as many for each share that has a part of it. */
static void NAME(join)(const NAME(Work) *work, int64_t tensor, int64_t own) {
    const int64_t columns = work->job->columns[tensor], blocks = NAME(blocks_of)(work, tensor);
    const int64_t owner = NAME(owner_of)(work, tensor, own);
    int64_t before = 0, parts = 0;
    for (int64_t other = owner; other < work->shares; other++) {
        const Share part = NAME(part_of)(work, tensor, other);
        if (part.end <= part.begin) continue;
        before += other < own;
        parts++;
    }
    const int64_t first = columns * before / parts, many = columns * (before + 1) / parts - first;
    const REAL *narrow = work->column_squares + work->columns_at[tensor] + first;
    double *sums = NAME(sums_of)(work, own);
    memset(sums, 0, sizeof(double) * (size_t)many);
    for (int64_t block = 0; block < blocks; block++, narrow += columns)
        for (int64_t column = 0; column < many; column++) sums[column] += narrow[column];
    work->keeps[2 * own + (own == owner)] =
        NAME(settle_columns)(work->job->rows[tensor], many, sums, NAME(means_of)(work, owner, 1) + first,
                             (REAL *)work->rule->second[tensor] + first, &work->signal);
}

/* The step of a part of a shared tensor, once its columns are joined. */
static void NAME(finish_shared)(const NAME(Work) *work, int64_t tensor, Share part, int64_t own) {
    const REAL norm = NAME(norm_of)(work, tensor);
    if (!NAME(has_factors)(work, tensor)) {
        NAME(finish)(work, tensor, part, norm, NULL, 1, own);
        return;
    }
    const int64_t owner = NAME(owner_of)(work, tensor, own);
    int keeps = 1;
    for (int64_t other = owner; other < work->shares; other++) {
        const Share theirs = NAME(part_of)(work, tensor, other);
        if (theirs.end > theirs.begin) keeps &= work->keeps[2 * other + (other == owner)];
    }
    NAME(finish)(work, tensor, part, norm, NAME(means_of)(work, owner, 1), keeps, own);
}

static int64_t NAME(first_tensor)(const NAME(Work) *work, int64_t at) {
    int64_t low = 0, high = work->job->tensors;
    while (low < high) {
        int64_t middle = (low + high) / 2;
        if (work->starts[middle + 1] <= at) low = middle + 1;
        else high = middle;
    }
    return low;
}

/* Finds the shared tensors, and how much room their sums need. */
static void NAME(find_shared)(NAME(Work) *work, size_t *squares, size_t *column_squares) {
    const int64_t total = work->starts[work->job->tensors];
    int64_t last = -1;
    *squares = *column_squares = 0;
    for (int64_t own = 1; own < work->shares; own++) {
        const int64_t tensor = NAME(first_tensor)(work, share_of(total, own, work->shares).begin);
        if (tensor <= last || tensor >= work->job->tensors || NAME(part_of)(work, tensor, own).begin <= 0)
            continue;
        const size_t blocks = (size_t)NAME(blocks_of)(work, tensor);
        last = tensor;
        work->squares_at[tensor] = (int64_t)*squares;
        work->columns_at[tensor] = (int64_t)*column_squares;
        if (NAME(has_factors)(work, tensor))
            *column_squares += blocks * (size_t)work->job->columns[tensor];
        if (NAME(has_factors)(work, tensor) || NAME(needs_norm)(work)) *squares += blocks;
    }
}

static void NAME(run)(const NAME(Work) *work) {
    const int64_t total = work->starts[work->job->tensors];
#pragma omp parallel num_threads((int)work->shares)
    {
        /* There may be fewer threads than were asked for. */
        const int64_t thread = omp_get_thread_num(), threads = omp_get_num_threads();
#define EACH_PART                                                                                  \
    for (int64_t own = thread; own < work->shares; own += threads) {                               \
        const Share share = share_of(total, own, work->shares);                                    \
        for (int64_t tensor = NAME(first_tensor)(work, share.begin);                               \
             tensor < work->job->tensors && work->starts[tensor] < share.end; tensor++) {          \
            const Share part = NAME(part_of)(work, tensor, own);                                   \
            if (part.end <= part.begin) continue;
#define EACH_SHARED_PART                                                                           \
        EACH_PART                                                                                  \
            if (part.end - part.begin == size_of(work->job, tensor)) continue;
#define END }}
        EACH_PART
            NAME(begin)(work, tensor, part, own);
        END
#pragma omp barrier
        if (work->rule->kind == FACTORS) {
            EACH_SHARED_PART
                if (NAME(has_factors)(work, tensor)) NAME(join)(work, tensor, own);
            END
#pragma omp barrier
        }
        if (work->rule->kind == FACTORS || NAME(needs_norm)(work)) {
            EACH_SHARED_PART
                if (NAME(has_factors)(work, tensor) || NAME(needs_norm)(work))
                    NAME(finish_shared)(work, tensor, part, own);
            END
        }
#undef EACH_PART
#undef EACH_SHARED_PART
#undef END
    }
}

/* Takes the step; returns 0, or 1 where memory was wanting, before anything changed. */
int NAME(emo_step)(const Job *job) {
    NAME(Work) work = {.job = job, .longest = 1};
    const Rule *rule = work.rule = &job->rule[choice(job->chosen, job->rules)];
    const REAL tolerance = *(const REAL *)job->tolerance;
    NAME(Signal) *signal = &work.signal;
    signal->sign = job->maximize ? -1 : 1;
    signal->scale = job->filter == KEEP_ALL ? 1 : *(const REAL *)job->scale;
    signal->lr = *(const REAL *)job->lr;
    signal->weight_decay = (REAL)job->weight_decay;
    signal->ratio = *(const REAL *)job->ratio;
    signal->stay = 1 - signal->ratio;
    signal->rate = (REAL)job->shadow_rate;
    signal->keeps_all = job->filter == KEEP_ALL || job->filter == KEEP_MATRICES;
    signal->bound = signal->row_bound = tolerance * tolerance * tolerance;
    signal->mode = (int)job->mode;
    signal->b1 = (REAL)rule->b1;
    signal->c1 = (REAL)(1.0 - rule->b1);
    signal->b2 = (REAL)rule->b2;
    signal->c2 = (REAL)(1.0 - rule->b2);
    signal->eps = (REAL)rule->eps;
    signal->first_step =
        job->first_steps ? job->first_step[choice(job->chosen_first, job->first_steps)] : NO_FIRST;
    work.vector_signal = *signal;
    work.vector_signal.keeps_all = job->filter == KEEP_ALL;
    /* There the filter is strict: at least the next number. */
    work.vector_signal.bound = NEXT(tolerance * SQRT(tolerance), (REAL)INFINITY);
    work.blends_before = signal->mode == L2 && rule->kind == FACTORS;
    work.blends_before |= signal->mode == L2 && rule->kind == SOFTSIGN;

    for (int64_t tensor = 0; tensor < job->tensors; tensor++)
        if (job->columns[tensor] > work.longest) work.longest = job->columns[tensor];
    if (rule->kind != FACTORS) work.longest = 1;
    work.shares = job->threads;
    const size_t shares = (size_t)job->threads, tensors = (size_t)job->tensors;
    size_t squares = 0, column_squares = 0;
    work.starts = malloc(sizeof(int64_t) * (tensors + 1));
    work.squares_at = malloc(sizeof(int64_t) * (tensors + 1));
    work.columns_at = malloc(sizeof(int64_t) * (tensors + 1));
    work.sums = malloc(sizeof(double) * shares * (size_t)work.longest);
    work.means = malloc(sizeof(REAL) * shares * 3 * (size_t)work.longest);
    work.keeps = calloc(2 * shares, sizeof(int));
    work.norms = calloc(tensors + 1, sizeof(REAL));
    int fails = !work.starts || !work.squares_at || !work.columns_at || !work.sums || !work.means ||
                !work.keeps || !work.norms;
    if (!fails) {
        int64_t end = work.starts[0] = 0;
        for (int64_t tensor = 0; tensor < job->tensors; tensor++)
            work.starts[tensor + 1] = end += size_of(job, tensor);
        NAME(find_shared)(&work, &squares, &column_squares);
        work.squares = malloc(sizeof(double) * (squares + 1));
        work.column_squares = malloc(sizeof(REAL) * (column_squares + 1));
        fails = !work.squares || !work.column_squares;
    }
    if (!fails) {
        NAME(run)(&work);
        if (job->shadows != NULL && signal->ratio > 0)
            for (int64_t tensor = 0; tensor < job->tensors; tensor++) *job->shadows_exist[tensor] = 1;
        if (rule->kind == REF)
            for (int64_t tensor = 0; tensor < job->tensors; tensor++)
                *(REAL *)job->norms[tensor] = work.norms[tensor];
    }
    void *rooms[] = {work.starts, work.squares_at, work.columns_at,     work.sums, work.means,
                     work.keeps,  work.norms,      work.column_squares, work.squares};
    for (size_t room = 0; room < sizeof(rooms) / sizeof(*rooms); room++) free(rooms[room]);
    return fails;
}

#undef POINTERS
