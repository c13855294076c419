/* Included by cpu.c, once for each dtype: the direction of EmoPilotAiry, for the blocks of EmoPilot.
 *
 * A matrix has averages of its squared gradients over rows and over columns. All other tensors have an average for
 * each element. The pass that measures also adds up the squares of a matrix by row and by column. The pass that
 * moves has three stages for each tensor: it settles the averages of a matrix, adds up the squares of the updates,
 * and moves. An update is the gradient over the root of the estimate of its second moment. */

/* Adafactor's number beside the squares, as in ../_rules/directions.py. */
#define LEAST_SQUARE ((REAL)1e-30)

INLINE int NAME(is_matrix)(const Job *job, int64_t tensor) {
    return job->rule[0].kind == PILOT_FACTORS && job->columns[tensor] > 0;
}

/* The end of the part of a block that begins at `from`: whole rows, or a part of a row that is longer than ROOM. */
INLINE int64_t NAME(part_end)(int64_t from, int64_t end, int64_t columns) {
    const int64_t row_end = (from / columns + 1) * columns;
    int64_t stop = from + ROOM / columns * columns;
    if (columns > ROOM) stop = from + ROOM < row_end ? from + ROOM : row_end;
    return stop < end ? stop : end;
}

/* A loop over the rows of a part: `start` is the first element of a row, and `width` the number of its elements. */
#define EACH_ROW(count, columns)                                                                   \
    const int64_t width = (columns) < (count) ? (columns) : (count);                               \
    for (int64_t start = 0; start < (count); start += width)

/* Squares the gradients of a part. Adds the squares to the sums by row and by column, and returns the sum of all. */
INLINE double NAME(square_rows)(int64_t count, const int64_t columns, const REAL *restrict params,
                                const REAL *restrict grads, REAL *restrict row_sums, REAL *restrict column_sums,
                                REAL sign, REAL weight_decay, const int mode) {
    double total = 0;
    EACH_ROW(count, columns) {
        REAL sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t column = 0; column < width; column++) {
            const REAL weight = mode == L2 ? params[start + column] : 0;
            const REAL grad = NAME(uphill)(grads[start + column], weight, sign, weight_decay, mode);
            const REAL square = grad * grad;
            sum += square;
            column_sums[column] += square;
        }
        *row_sums++ += sum;
        total += sum;
    }
    return total;
}

/* One block of a matrix in the pass that measures. `column_sums` are the sums of this block. */
static void NAME(measure_rows)(const NAME(Work) *work, int64_t tensor, Share block, REAL *row_sums,
                               REAL *column_sums, double *sums) {
    const Job *job = work->job;
    const int weighs = NAME(weighs)(job->pilot, tensor), needed = weighs || job->mode == L2;
    const int64_t columns = job->columns[tensor];
    const REAL sign = job->maximize ? -1 : 1, weight_decay = (REAL)job->weight_decay;
    memset(column_sums, 0, sizeof(REAL) * (size_t)columns);
    for (int64_t from = block.begin, stop; from < block.end; from = stop) {
        stop = NAME(part_end)(from, block.end, columns);
        const int64_t count = stop - from;
        const NAME(Tile) tile = NAME(open_tile)(work, tensor, from, count, 0, NAME(GRADIENTS) | needed);
        REAL *rows = row_sums + from / columns, *by_column = column_sums + from % columns;
#define SQUARE_ROWS(columns, mode)                                                                 \
    NAME(square_rows)(count, columns, tile.params, tile.grads, rows, by_column, sign, weight_decay, mode)
        /* With a known number of columns, the loops over short rows are unrolled. */
        if (job->mode == L2) sums[0] += SQUARE_ROWS(columns, L2);
        else if (columns == 4) sums[0] += SQUARE_ROWS(4, DECOUPLED);
        else if (columns == 8) sums[0] += SQUARE_ROWS(8, DECOUPLED);
        else if (columns == 16) sums[0] += SQUARE_ROWS(16, DECOUPLED);
        else sums[0] += SQUARE_ROWS(columns, DECOUPLED);
#undef SQUARE_ROWS
        if (weighs) sums[3] += NAME(weigh_part)(count, tile.params);
    }
}

/* Moves averages by the sums of squares, which become the averages in the dtype of the computation. Returns the sum
 * of the averages. */
INLINE double NAME(settle)(int64_t count, REAL *restrict sums, void *restrict averages, int64_t each,
                           const NAME(Flight) *flight, const int kind) {
    const REAL gate = flight->gate, share = gate / (REAL)each;
    double total = 0;
    for (int64_t index = 0; index < count; index++) {
        /* Twice by the gate, whose square can be below all numbers. */
        const REAL mean = sums[index] * share * gate + LEAST_SQUARE;
        sums[index] = NAME(read)(averages, index, kind) * flight->b2 + mean * flight->c2;
        NAME(keep)(averages, index, sums[index], 1, kind);
        total += sums[index];
    }
    return total;
}

/* Moves the averages of a matrix. `factors` are the sums by row and then by column. They become the factors of the
 * root of the estimate: roots of the averages of rows over their mean, corrected, and of the averages of columns. */
static void NAME(settle_matrix)(const Job *job, int64_t tensor, REAL *factors, const NAME(Flight) *flight) {
    const int64_t rows = job->rows[tensor], columns = job->columns[tensor];
    const int kind = (int)job->rule[0].second_kind;
    const double total = NAME(settle)(rows, factors, job->pilot->rows[tensor], columns, flight, kind);
    const REAL mean = (REAL)(total / (double)rows);
    for (int64_t row = 0; row < rows; row++) factors[row] = SQRT(factors[row] / mean * flight->corrections.second);
    NAME(settle)(columns, factors + rows, job->rule[0].second[tensor], rows, flight, kind);
    for (int64_t column = 0; column < columns; column++) factors[rows + column] = SQRT(factors[rows + column]);
}

/* Writes the updates of a part of a matrix. */
INLINE void NAME(turn_rows)(int64_t count, const int64_t columns, const REAL *restrict params,
                            const REAL *restrict grads, const REAL *restrict row_factors,
                            const REAL *restrict column_factors, REAL *restrict updates,
                            const NAME(Flight) flight, const int mode) {
    EACH_ROW(count, columns) {
        const REAL factor = *row_factors++;
#pragma GCC ivdep
        for (int64_t column = 0; column < width; column++) {
            const REAL weight = mode == L2 ? params[start + column] : 0;
            const REAL grad = NAME(uphill)(grads[start + column], weight, flight.sign, flight.weight_decay, mode);
            updates[start + column] = grad * flight.gate / (factor * column_factors[column] + flight.eps);
        }
    }
}

/* Writes the updates of a part of another tensor. `moves` is 1 to move the averages of the squares, too. */
INLINE void NAME(turn_elements)(int64_t count, const REAL *restrict params, const REAL *restrict grads,
                                REAL *restrict seconds, REAL *restrict updates, const NAME(Flight) flight,
                                const int mode, const int moves) {
    for (int64_t index = 0; index < count; index++) {
        const REAL weight = mode == L2 ? params[index] : 0;
        const REAL gated =
            NAME(uphill)(grads[index], weight, flight.sign, flight.weight_decay, mode) * flight.gate;
        const REAL second = seconds[index] * flight.b2 + flight.c2 * (gated * gated);
        if (moves) seconds[index] = second;
        updates[index] = gated / (SQRT(second * flight.corrections.second) + flight.eps);
    }
}

/* Moves a part by its updates times `shrink`, and adds <g, m> and <m, m>; m is the momentum before the step. */
INLINE void NAME(move_turned)(int64_t count, REAL *restrict params, const REAL *restrict grads,
                              REAL *restrict firsts, REAL *restrict averages, const REAL *restrict updates,
                              REAL shrink, const NAME(Flight) flight, const int mode, const int keeps_average,
                              double *sums) {
    const REAL decay = mode == DECOUPLED ? flight.length * flight.weight_decay : flight.weight_decay;
    REAL products = 0, lengths = 0;
#pragma omp simd reduction(+ : products, lengths)
    for (int64_t index = 0; index < count; index++) {
        const REAL weight = params[index], last = firsts[index];
        products += NAME(uphill)(grads[index], weight, flight.sign, flight.weight_decay, mode) * last;
        lengths += last * last;
        const REAL first = NAME(follow)(last, updates[index] * shrink, flight.c1);
        firsts[index] = first;
        const REAL change = first * flight.corrections.first * flight.length;
        NAME(change_weight)(params, averages, index, change, decay, flight.rate, mode, keeps_average);
    }
    sums[1] += products;
    sums[2] += lengths;
}

/* One block of a tensor in the stages after `settle_matrix`: adds up the squares of the updates if `moves` is 0, and
 * otherwise moves. `factors` are those of a matrix. */
static void NAME(turn_block)(const NAME(Work) *work, int64_t tensor, Share block, const REAL *factors,
                             const NAME(Flight) *flight, REAL shrink, int moves, double *sums) {
    const Job *job = work->job;
    const Pilot *pilot = job->pilot;
    const int is_matrix = NAME(is_matrix)(job, tensor);
    const int64_t columns = is_matrix ? job->columns[tensor] : 1;
    const REAL *column_factors = is_matrix ? factors + job->rows[tensor] : NULL;
    const int read = NAME(GRADIENTS) | (job->mode == L2) | (is_matrix ? 0 : NAME(SECONDS));
    const int needed = !moves ? read : is_matrix ? NAME(ALL_STREAMS) - NAME(SECONDS) : NAME(ALL_STREAMS);
    REAL *averages = pilot->averages == NULL ? NULL : (REAL *)pilot->averages[tensor];
    REAL updates[ROOM];
    for (int64_t from = block.begin, stop; from < block.end; from = stop) {
        stop = NAME(part_end)(from, block.end, columns);
        const int64_t count = stop - from;
        NAME(Tile) tile = NAME(open_tile)(work, tensor, from, count, 0, needed);
        if (is_matrix) {
            const REAL *by_row = factors + from / columns, *by_column = column_factors + from % columns;
            tile.seconds = NULL;
#define TURN_ROWS(columns, mode)                                                                   \
    NAME(turn_rows)(count, columns, tile.params, tile.grads, by_row, by_column, updates, *flight, mode)
            if (job->mode == L2) TURN_ROWS(columns, L2);
            else if (columns == 4) TURN_ROWS(4, DECOUPLED);
            else if (columns == 8) TURN_ROWS(8, DECOUPLED);
            else if (columns == 16) TURN_ROWS(16, DECOUPLED);
            else TURN_ROWS(columns, DECOUPLED);
#undef TURN_ROWS
        } else {
#define TURN_ELEMENTS(mode, moves)                                                                 \
    NAME(turn_elements)(count, tile.params, tile.grads, tile.seconds, updates, *flight, mode, moves)
            if (job->mode == L2 && moves) TURN_ELEMENTS(L2, 1);
            else if (job->mode == L2) TURN_ELEMENTS(L2, 0);
            else if (moves) TURN_ELEMENTS(DECOUPLED, 1);
            else TURN_ELEMENTS(DECOUPLED, 0);
#undef TURN_ELEMENTS
        }
        if (!moves) {
            sums[0] += NAME(weigh_part)(count, updates);
            continue;
        }
#define MOVE_TURNED(mode, average)                                                                 \
    NAME(move_turned)(count, tile.params, tile.grads, tile.firsts, average ? averages + from : NULL, updates, \
                      shrink, *flight, mode, average, sums)
#define MOVE_WITH(mode)                                                                            \
    do {                                                                                           \
        if (averages == NULL) MOVE_TURNED(mode, 0);                                                \
        else MOVE_TURNED(mode, 1);                                                                 \
    } while (0)
        if (job->mode == DECOUPLED) MOVE_WITH(DECOUPLED);
        else if (job->mode == ABSOLUTE) MOVE_WITH(ABSOLUTE);
        else MOVE_WITH(L2);
#undef MOVE_TURNED
#undef MOVE_WITH
        if (pilot->weighs) sums[3] += NAME(weigh_part)(count, tile.params);
        NAME(close_tile)(work, &tile, tensor, from, count);
    }
}

#undef EACH_ROW
#undef LEAST_SQUARE
