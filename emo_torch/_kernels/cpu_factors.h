/* Included by cpu.c, once for each dtype: the rule that keeps averages over rows and columns. */

/* Squares the gradients of a block of rows. Updates the averages of the rows by the means of the squares, adds the
 * sums by column to `narrow`, and returns the sum of all squares. A row that the filter stops gets a negative
 * average until the step is taken. `ahead` is 1 if the step follows while the block is still in the cache.
 * `fresh` is 1 to set `narrow` to 0 first. */
INLINE double NAME(gather_rows)(
    int64_t rows, int64_t columns, const REAL *restrict params, const REAL *restrict grads,
    REAL *restrict averages, REAL *restrict narrow, const NAME(Signal) *signal, int ahead,
    int fresh, const int mode) {
    const REAL sign = signal->sign, weight_decay = signal->weight_decay, eps = signal->eps;
    double total = 0;
    if (fresh) memset(narrow, 0, sizeof(REAL) * (size_t)columns);
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

/* Adds neighbours in pairs: `to` has half as many numbers as `from`. */
INLINE void NAME(add_pairs)(int64_t count, REAL *restrict to, const REAL *restrict from) {
    for (int64_t index = 0; index < count; index++) to[index] = from[2 * index] + from[2 * index + 1];
}

/* The same as `gather_rows` for at most ROWS rows of few columns. The number of columns is known to the compiler
 * and divides LANES, so that the sums are computed in parallel in vectors. */
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

/* The sums of a block of rows before the step: see `gather_rows`. Blocks of few columns have one tile, so that
 * their sums always begin at 0. */
static double NAME(gather)(
    int64_t rows, int64_t columns, const REAL *params, const REAL *grads, REAL *averages, REAL *narrow,
    const NAME(Signal) *signal, int ahead, int fresh) {
#define GATHER(mode)                                                                               \
    NAME(gather_rows)(rows, columns, params, grads, averages, narrow, signal, ahead, fresh, mode)
    if (signal->mode == L2) return GATHER(L2);
    /* Adapters have few columns: with a known number of columns most of the time is saved. */
    switch (columns) {
    case 4: return NAME(gather_few)(rows, 4, grads, averages, narrow, signal);
    case 8: return NAME(gather_few)(rows, 8, grads, averages, narrow, signal);
    case 16: return NAME(gather_few)(rows, 16, grads, averages, narrow, signal);
    default: return GATHER(DECOUPLED);
    }
#undef GATHER
}

/* Writes the means of the columns to `means`, and updates the averages of the columns. Returns 1 if the filter
 * keeps every column, and otherwise 0. */
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

/* The step of some rows, by the averages of the rows and the square roots of the averages of the columns. */
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

/* The same as `factor_rows` for few columns, if the filter keeps all elements: without shadow and first step. */
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
