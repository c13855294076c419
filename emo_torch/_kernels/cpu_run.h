/* Included by cpu.c, once for each dtype: one step of all tensors, in several threads. */

/* The norm of the gradient of a shared tensor. */
static REAL NAME(norm_of)(const NAME(Work) *work, int64_t tensor) {
    const double *squares = work->squares + work->squares_at[tensor];
    const int64_t blocks = NAME(blocks_of)(work, tensor);
    double sum = 0;
    for (int64_t block = 0; block < blocks; block++) sum += squares[block];
    return (REAL)sqrt(sum);
}

/* A loop over a part of a tensor: in one piece, or in tiles of whole rows if a stream is narrow. */
#define EACH_TILE(work, part, columns, room)                                                       \
    const int64_t fit = (room) / (columns) > 0 ? (room) / (columns) * (columns) : (columns);       \
    const int64_t each = (work)->is_narrow ? fit : (part).end - (part).begin;                      \
    for (int64_t from = (part).begin; from < (part).end; from += each) {                           \
        const int64_t many = (part).end - from < each ? (part).end - from : each;
#define END_TILE }

/* The step of a part of a tensor, with a learning rate from the norm of the gradient. */
static void NAME(finish_ref)(const NAME(Work) *work, int64_t tensor, Share part, REAL norm, int64_t own) {
    const Job *job = work->job;
    const REAL before = *(const REAL *)job->norms[tensor], factor = (REAL)job->norm_factor;
    if (!isfinite(norm)) {
        /* The tensor and its norm stay unchanged. */
        if (part.begin == 0) work->norms[tensor] = before;
        return;
    }
    const REAL smoothed = before < 0 ? norm : (REAL)(1.0 - job->norm_factor) * before + factor * norm;
    REAL lr = work->signal.lr * smoothed / (norm + (REAL)1e-12);
    if (lr < (REAL)job->least_lr) lr = (REAL)job->least_lr;
    if (lr > (REAL)job->most_lr) lr = (REAL)job->most_lr;
    if (!(work->signal.lr > 0)) lr = 0;
    EACH_TILE(work, part, 1, TILE)
        NAME(Tile) tile = NAME(open_tile)(work, tensor, from, many, own, NAME(ALL_STREAMS));
        NAME(step_ref)(many, tile.params, tile.grads, tile.firsts, tile.seconds, &work->signal, lr,
                       *(const REAL *)job->share, (REAL)job->injection_bound);
        NAME(close_tile)(work, &tile, tensor, from, many);
    END_TILE
    /* Written to `work`: other threads still read the old norm. */
    if (part.begin == 0) work->norms[tensor] = smoothed;
}

/* The step of a part of a tensor, after the sums over the whole tensor. */
static void NAME(finish)(const NAME(Work) *work, int64_t tensor, Share part, REAL norm,
                         const REAL *means, int keeps, int64_t own) {
    if (work->rule->kind == REF) {
        NAME(finish_ref)(work, tensor, part, norm, own);
        return;
    }
    POINTERS(work, tensor, part.begin);
    const REAL length = norm + work->signal.eps;
    int64_t columns = job->columns[tensor], count = part.end - part.begin;
    if (NAME(has_factors)(work, tensor)) {
        REAL *averages = NAME(rows_of)(work, tensor) + part.begin / columns;
        const REAL *column_averages = NAME(columns_of)(work, tensor);
        if (!work->signal.keeps_all)
            for (int64_t row = 0; row < count / columns; row++) keeps &= !signbit(averages[row]);
        REAL *roots = NAME(means_of)(work, own, 2);
        for (int64_t column = 0; column < columns; column++) roots[column] = SQRT(column_averages[column]);
        EACH_TILE(work, part, columns, ROOM)
            NAME(Tile) tile = NAME(open_tile)(work, tensor, from, many, own, NAME(NO_MOMENTS));
            NAME(factor)(many / columns, columns, tile.params, tile.grads,
                         averages + (from - part.begin) / columns, roots, means,
                         shadows ? shadows + (from - part.begin) : NULL, &work->signal, length, keeps, blends);
            NAME(close_tile)(work, &tile, tensor, from, many);
        END_TILE
        return;
    }
    if (work->rule->kind == SIGN || work->rule->kind == FRESH) {
        EACH_TILE(work, part, 1, TILE)
            NAME(Tile) tile = NAME(open_tile)(work, tensor, from, many, own, NAME(ALL_STREAMS));
            NAME(step_signs)(job, many, tile.params, tile.grads, tile.firsts,
                             shadows ? shadows + (from - part.begin) : NULL, &work->signal,
                             (int)work->rule->kind, blends, wakes && !blends);
            NAME(close_tile)(work, &tile, tensor, from, many);
        END_TILE
        return;
    }
    const NAME(Signal) *signal = work->rule->kind == FACTORS ? &work->vector_signal : &work->signal;
    int rule = work->rule->kind == FACTORS ? ADAM : (int)work->rule->kind;
    if (NAME(step_kept)(work, tensor, part, signal, rule, blends)) return;
    EACH_TILE(work, part, 1, TILE)
        NAME(Tile) tile = NAME(open_tile)(work, tensor, from, many, own, NAME(ALL_STREAMS));
        NAME(step_elements)(many, tile.params, tile.grads, tile.firsts, tile.seconds,
                            shadows ? shadows + (from - part.begin) : NULL, signal, length, rule, blends);
        NAME(close_tile)(work, &tile, tensor, from, many);
    END_TILE
}

/* The sums of a block of rows of a matrix: see `gather`. */
static double NAME(gather_block)(const NAME(Work) *work, int64_t tensor, Share block, REAL *averages,
                                 REAL *narrow, int ahead, int64_t own) {
    const int64_t columns = work->job->columns[tensor];
    const int needed = work->signal.mode == L2 ? NAME(NO_MOMENTS) : NAME(GRADIENTS);
    double squares = 0;
    EACH_TILE(work, block, columns, ROOM)
        const NAME(Tile) tile = NAME(open_tile)(work, tensor, from, many, own, needed);
        squares += NAME(gather)(many / columns, columns, tile.params, tile.grads,
                                averages + (from - block.begin) / columns, narrow, &work->signal,
                                ahead && !work->is_narrow, from == block.begin);
    END_TILE
    return squares;
}

/* The sums of a matrix, or of a part of a matrix. Of a shared matrix, the sums of each block are kept. Of a whole
 * matrix, the means of the columns are computed, too, and the sum of all squares is returned. */
static double NAME(begin_matrix)(const NAME(Work) *work, int64_t tensor, Share part, int64_t own,
                                 int *keeps) {
    const Job *job = work->job;
    const int64_t columns = job->columns[tensor], rows = (part.end - part.begin) / columns;
    const int64_t unit = rows_of_block(columns), first_row = part.begin / columns;
    const int is_whole = part.end - part.begin == size_of(job, tensor), ahead = rows * columns <= CACHED;
    REAL *narrow = NAME(means_of)(work, own, 2), *averages = NAME(rows_of)(work, tensor) + first_row;
    double *sums = NAME(sums_of)(work, own), *block_squares = NULL, squares = 0;
    if (is_whole) {
        memset(sums, 0, sizeof(double) * (size_t)columns);
    } else {
        narrow = work->column_squares + work->columns_at[tensor] + first_row / unit * columns;
        block_squares = work->squares + work->squares_at[tensor] + first_row / unit;
    }
    for (int64_t row = 0; row < rows; row += unit) {
        const int64_t many = rows - row < unit ? rows - row : unit;
        const Share block = {part.begin + row * columns, part.begin + (row + many) * columns};
        const double square =
            NAME(gather_block)(work, tensor, block, averages + row, narrow, ahead, own);
        if (is_whole) {
            for (int64_t column = 0; column < columns; column++) sums[column] += narrow[column];
            squares += square;
        } else {
            narrow += columns;
            *block_squares++ = square;
        }
    }
    if (is_whole)
        *keeps = NAME(settle_columns)(rows, columns, sums, NAME(means_of)(work, own, 0),
                                      NAME(columns_of)(work, tensor), &work->signal);
    return squares;
}

/* The work on a part that needs no results of other threads. For most tensors this is the whole step. */
static void NAME(begin)(const NAME(Work) *work, int64_t tensor, Share part, int64_t own) {
    POINTERS(work, tensor, part.begin);
    const int64_t count = part.end - part.begin;
    const int is_whole = count == size_of(job, tensor);
    if (wakes && !*job->shadows_exist[tensor]) NAME(copy_to_shadows)(work, tensor, part, shadows);
    else if (wakes && work->blends_before) /* Never with narrow parameters: see `describe` in cpu.py. */
        NAME(blend)(count, (REAL *)job->params[tensor] + part.begin, shadows, &work->signal);
    (void)blends;
    double squares = 0;
    int keeps = 1;
    if (NAME(has_factors)(work, tensor)) {
        squares = NAME(begin_matrix)(work, tensor, part, own, &keeps);
    } else if (NAME(needs_norm)(work)) {
        double *kept = is_whole ? NULL : work->squares + work->squares_at[tensor] + part.begin / VECTOR_BLOCK;
        for (int64_t block = 0; block < count; block += VECTOR_BLOCK) {
            const int64_t many = count - block < VECTOR_BLOCK ? count - block : VECTOR_BLOCK;
            const int needed = work->signal.mode == L2 ? NAME(NO_MOMENTS) : NAME(GRADIENTS);
            const NAME(Tile) tile =
                NAME(open_tile)(work, tensor, part.begin + block, many, own, needed);
            const double square = NAME(sum_of_squares)(many, tile.grads, tile.params, &work->signal);
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

/* The share with the first element of a shared tensor. */
INLINE int64_t NAME(owner_of)(const NAME(Work) *work, int64_t tensor, int64_t own) {
    while (NAME(part_of)(work, tensor, own).begin > 0) own--;
    return own;
}

/* The means and averages of some columns of a shared tensor. Each share with a part of the tensor computes an equal
 * number of columns. */
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
                             NAME(columns_of)(work, tensor) + first, &work->signal);
}

/* The step of a part of a shared tensor, after `join`. */
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

/* Finds the shared tensors, and the numbers of sums that they need. */
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
        /* OpenMP may give fewer threads than `work->shares`. */
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

/* Takes the step; returns 0, or 1 if memory is missing, before anything has changed. */
int NAME(emo_step)(const Job *job) {
    NAME(Work) work = {.job = job, .longest = 1};
    const Rule *rule = work.rule = &job->rule[choice(job->chosen, job->rules)];
    if (rule->kind == PILOT || rule->kind == PILOT_FACTORS) return NAME(pilot_pass)(job);
    const REAL tolerance = *(const REAL *)job->tolerance;
    NAME(Signal) *signal = &work.signal;
    signal->sign = job->maximize ? -1 : 1;
    signal->scale = job->filter == KEEP_ALL ? 1 : *(const REAL *)job->scale;
    signal->lr = *(const REAL *)job->lr;
    signal->weight_decay = (REAL)job->weight_decay;
    signal->ratio = *(const REAL *)job->ratio;
    signal->stay = 1 - signal->ratio;
    signal->rate = (REAL)job->shadow_rate;
    signal->keeps_all = job->filter == KEEP_ALL || job->filter >= KEEP_MATRICES;
    signal->bound = signal->row_bound = tolerance * tolerance * tolerance;
    signal->mode = (int)job->mode;
    signal->b1 = (REAL)rule->b1;
    signal->c1 = (REAL)(1.0 - rule->b1);
    signal->b2 = (REAL)rule->b2;
    signal->c2 = (REAL)(1.0 - rule->b2);
    signal->eps = (REAL)rule->eps;
    signal->first_step =
        job->first_steps ? job->first_step[choice(job->chosen_first, job->first_steps)] : NO_FIRST;
    work.wakes = signal->ratio > 0 || job->trusts;
    work.vector_signal = *signal;
    work.vector_signal.keeps_all = job->filter == KEEP_ALL;
    /* The filter of vectors is strict: a gradient must be larger than the bound, at least the next number. */
    work.vector_signal.bound = NEXT(tolerance * SQRT(tolerance), (REAL)INFINITY);
    work.blends_before = signal->mode == L2 && rule->kind == FACTORS;
    work.blends_before |= signal->mode == L2 && rule->kind == SOFTSIGN;

    for (int64_t tensor = 0; tensor < job->tensors; tensor++)
        if (job->columns[tensor] > work.longest) work.longest = job->columns[tensor];
    if (rule->kind != FACTORS) work.longest = 1;
    work.shares = job->threads;
    work.is_narrow = job->param_kind != WIDE || job->grad_kind != WIDE || rule->first_kind != WIDE ||
                     rule->second_kind != WIDE;
    work.is_coded = rule->first_kind == CODED || rule->second_kind == CODED;
    work.tile_room = work.is_narrow ? (work.longest > ROOM ? work.longest : ROOM) : 0;
    const size_t shares = (size_t)job->threads, tensors = (size_t)job->tensors;
    size_t squares = 0, column_squares = 0;
    work.starts = malloc(sizeof(int64_t) * (tensors + 1));
    work.squares_at = malloc(sizeof(int64_t) * (tensors + 1));
    work.columns_at = malloc(sizeof(int64_t) * (tensors + 1));
    work.sums = malloc(sizeof(double) * shares * (size_t)work.longest);
    work.means = malloc(sizeof(REAL) * shares * 3 * (size_t)work.longest);
    work.keeps = calloc(2 * shares, sizeof(int));
    work.norms = calloc(tensors + 1, sizeof(REAL));
    work.room = malloc(sizeof(REAL) * (shares * 4 * (size_t)work.tile_room + 1));
    int fails = !work.room || !work.starts || !work.squares_at || !work.columns_at || !work.sums || !work.means ||
                !work.keeps || !work.norms;
    if (!fails) {
        int64_t end = work.starts[0] = 0;
        for (int64_t tensor = 0; tensor < job->tensors; tensor++)
            work.starts[tensor + 1] = end += size_of(job, tensor);
        NAME(find_shared)(&work, &squares, &column_squares);
        work.squares = malloc(sizeof(double) * (squares + 1));
        work.column_squares = malloc(sizeof(REAL) * (column_squares + 1));
        fails = !work.squares || !work.column_squares || !NAME(open_averages)(&work);
    }
    if (!fails) {
        NAME(run)(&work);
        NAME(close_averages)(&work);
        if (job->shadows != NULL && work.wakes)
            for (int64_t tensor = 0; tensor < job->tensors; tensor++) *job->shadows_exist[tensor] = 1;
        if (rule->kind == REF)
            for (int64_t tensor = 0; tensor < job->tensors; tensor++)
                *(REAL *)job->norms[tensor] = work.norms[tensor];
    }
    void *rooms[] = {work.starts, work.squares_at, work.columns_at,     work.sums, work.means,
                     work.keeps,  work.norms,      work.column_squares, work.squares,
                     work.room,   work.averages,   work.averages_at};
    for (size_t room = 0; room < sizeof(rooms) / sizeof(*rooms); room++) free(rooms[room]);
    return fails;
}

#undef POINTERS
#undef EACH_TILE
#undef END_TILE
