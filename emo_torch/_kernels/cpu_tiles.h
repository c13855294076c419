/* Included by cpu.c, once for each dtype: the memory that threads share, and parts of tensors in REAL for the rules.
 *
 * A tensor is shared if several threads have a part of it. The sums of a shared tensor are kept for each block. */

/* The memory that threads share. */
typedef struct {
    const Job *job;
    const Rule *rule;
    NAME(Signal) signal, vector_signal; /* `vector_signal` is for vectors, if the rule has factors */
    int64_t shares;                     /* the number of shares of all elements: one for each thread */
    int64_t *starts;                    /* the first element of each tensor, and the number of all elements */
    int64_t longest;                    /* the largest number of columns */
    int64_t *squares_at, *columns_at;   /* for each shared tensor its first index in the next two arrays */
    double *squares;                    /* the sum of squares of each block */
    REAL *column_squares;               /* the sums of squares of each block by column */
    double *sums;                       /* for each share: sums by column */
    REAL *means;                        /* for each share: the means of columns of a whole tensor, of the
                                           shared tensor that begins in the share, and a temporary row */
    int *keeps;                         /* for each share: whether the filter keeps all columns that the share
                                           joins, of its first and of its last tensor, if these are shared */
    REAL *norms;                        /* the new smoothed norms of gradients */
    int blends_before, wakes;           /* `wakes`: whether shadows move, or are made */
    int is_narrow, is_coded;            /* whether a stream is in a narrower dtype than REAL, and moments in codes */
    REAL *room;                         /* for each share: four tiles */
    int64_t tile_room;                  /* the elements of one tile */
    REAL *averages;                     /* copies in REAL of narrow averages of rows and columns; else NULL */
    int64_t *averages_at;               /* the first index of each tensor in `averages`: rows, then columns */
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

/* The elements of a block of a tensor; without sums at least a cache line. */
INLINE int64_t NAME(unit_of)(const NAME(Work) *work, int64_t tensor) {
    const int64_t columns = work->job->columns[tensor];
    if (NAME(has_factors)(work, tensor)) return rows_of_block(columns) * columns;
    if (NAME(needs_norm)(work)) return VECTOR_BLOCK;
    return work->is_coded ? CODED_BLOCK : UNIT;
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

/* Some elements of a tensor in REAL: in place if their stream is in REAL, else copies in the room of a share. */
typedef struct {
    REAL *params;
    const REAL *grads;
    REAL *firsts, *seconds;
} NAME(Tile);

/* The streams of a tile that are needed, as bits: parameters, gradients, first and second moments. */
enum { NAME(ALL_STREAMS) = 15, NAME(NO_MOMENTS) = 3, NAME(GRADIENTS) = 2, NAME(SECONDS) = 8 };

#if MAY_BE_NARROW
INLINE void *NAME(place_of)(void *const *tensors, int64_t tensor, int64_t from, int64_t kind) {
    return (char *)tensors[tensor] + from * (kind == WIDE ? (int64_t)sizeof(REAL) : 2);
}

INLINE REAL *NAME(open_stream)(void *const *tensors, int64_t tensor, int64_t from, int64_t count, int64_t kind,
                               REAL *room) {
    void *kept = NAME(place_of)(tensors, tensor, from, kind);
    if (kind == WIDE) return kept;
    widen(count, room, kept, kind);
    return room;
}

/* Moments in codes begin at the beginning of a block. `squares` is 1 for second moments. A small tensor keeps its
 * moments in REAL among moments in codes: the address of its scales is that of its moments. */
INLINE int64_t NAME(kind_of)(void *const *tensors, float *const *scales, int64_t tensor, int64_t kind) {
    return kind == CODED && (void *)scales[tensor] == tensors[tensor] ? WIDE : kind;
}

INLINE REAL *NAME(open_moments)(const Job *job, void *const *tensors, float *const *scales, int64_t tensor,
                                int64_t from, int64_t count, int64_t kind, int squares, REAL *room) {
    kind = NAME(kind_of)(tensors, scales, tensor, kind);
    if (kind != CODED) return NAME(open_stream)(tensors, tensor, from, count, kind, room);
    decode(count, room, (const uint8_t *)tensors[tensor] + from, scales[tensor] + from / CODED_BLOCK,
           (const Code *)job->tables + squares, squares);
    return room;
}

INLINE void NAME(close_moments)(const Job *job, void *const *tensors, float *const *scales, int64_t tensor,
                                int64_t from, int64_t count, int64_t kind, int squares, int is_alone,
                                const REAL *wide) {
    kind = NAME(kind_of)(tensors, scales, tensor, kind);
    if (kind == CODED)
        encode(count, (uint8_t *)tensors[tensor] + from, scales[tensor] + from / CODED_BLOCK, wide,
               (const Code *)job->tables + squares, squares,
               squares || is_alone ? MOST_COUNTED : MOST_BESIDE_SQUARE);
    else if (kind != WIDE)
        narrow(count, (uint16_t *)tensors[tensor] + from, wide, squares, kind);
}
#endif

/* The kinds and the rounding of a tensor, from the element `from`. */
INLINE Kept NAME(kept_of)(const NAME(Work) *work, int64_t tensor, int64_t from) {
    const Job *job = work->job;
    Kept kept = {(int)job->param_kind, (int)work->rule->first_kind, (int)job->rounding, NULL, 0};
    if (job->param_kind == WIDE) return kept;
    if (job->rounding == KAHAN) kept.compensations = (uint16_t *)job->compensations[tensor] + from;
    if (job->rounding == STOCHASTIC) kept.place = (uint32_t)job->keys[tensor] + (uint32_t)from;
    return kept;
}

#if MAY_BE_NARROW
/* The most common steps of moments in 8 bits. Returns 1, or 0 for a step that is not among them. */
static int NAME(step_coded)(const NAME(Work) *work, int64_t tensor, Share part, const NAME(Signal) *signal, int rule,
                            int blends) {
    const Job *job = work->job;
    const Rule *kept = work->rule;
    const int64_t from = part.begin, count = part.end - from, block = from / CODED_BLOCK;
    const int is_known = (rule == ADAM || rule == LION) && signal->sign == 1 && !signal->keeps_all;
    if (!is_known || blends || signal->mode != DECOUPLED || job->param_kind != WIDE || job->grad_kind != WIDE) return 0;
    if (NAME(kind_of)(kept->first, kept->first_scales, tensor, kept->first_kind) != CODED) return 0;
    if (rule == ADAM && NAME(kind_of)(kept->second, kept->second_scales, tensor, kept->second_kind) != CODED) return 0;
    float *params = (float *)job->params[tensor] + from;
    const float *grads = (const float *)job->grads[tensor] + from;
    uint8_t *firsts = (uint8_t *)kept->first[tensor] + from;
    uint8_t *seconds = rule == ADAM ? (uint8_t *)kept->second[tensor] + from : NULL;
    float *scales = kept->first_scales[tensor] + block;
    float *second_scales = rule == ADAM ? kept->second_scales[tensor] + block : NULL;
    coded_step(count, params, grads, firsts, scales, seconds, second_scales, job->tables, signal, rule);
    return 1;
}
#endif

/* The step of a part of a tensor without tiles. Returns 1, or 0 if the step needs tiles. */
static int NAME(step_kept)(const NAME(Work) *work, int64_t tensor, Share part, const NAME(Signal) *signal,
                           int rule, int blends) {
#if MAY_BE_NARROW
    const Job *job = work->job;
    const Rule *kept = work->rule;
    const int64_t from = part.begin, second = kept->second[tensor] ? kept->second_kind : kept->first_kind;
    if (work->is_coded) return NAME(step_coded)(work, tensor, part, signal, rule, blends);
    if (!work->is_narrow || blends || job->grad_kind != job->param_kind || second != kept->first_kind) return 0;
    return NAME(step_narrow)(part.end - from, NAME(place_of)(job->params, tensor, from, job->param_kind),
                             NAME(place_of)(job->grads, tensor, from, job->grad_kind),
                             NAME(place_of)(kept->first, tensor, from, kept->first_kind),
                             kept->second[tensor] ? NAME(place_of)(kept->second, tensor, from, second) : NULL,
                             signal, rule, NAME(kept_of)(work, tensor, from));
#else
    (void)work, (void)tensor, (void)part, (void)signal, (void)rule, (void)blends;
    return 0;
#endif
}

static NAME(Tile) NAME(open_tile)(const NAME(Work) *work, int64_t tensor, int64_t from, int64_t count,
                                  int64_t own, int needed) {
    const Job *job = work->job;
    const Rule *rule = work->rule;
    NAME(Tile) tile = {NULL, NULL, NULL, NULL};
#if MAY_BE_NARROW
    if (work->is_narrow) {
        REAL *room = work->room + own * 4 * work->tile_room;
        const int64_t each = work->tile_room;
        if (needed & 1) tile.params = NAME(open_stream)(job->params, tensor, from, count, job->param_kind, room);
        if (needed & 2)
            tile.grads = NAME(open_stream)(job->grads, tensor, from, count, job->grad_kind, room + each);
        if (needed & 4 && rule->first[tensor])
            tile.firsts = NAME(open_moments)(job, rule->first, rule->first_scales, tensor, from, count,
                                             rule->first_kind, 0, room + 2 * each);
        if (needed & 8 && rule->second[tensor])
            tile.seconds = NAME(open_moments)(job, rule->second, rule->second_scales, tensor, from, count,
                                              rule->second_kind, 1, room + 3 * each);
        return tile;
    }
#endif
    (void)count, (void)own, (void)needed;
    tile.params = (REAL *)job->params[tensor] + from;
    tile.grads = (const REAL *)job->grads[tensor] + from;
    if (rule->first[tensor]) tile.firsts = (REAL *)rule->first[tensor] + from;
    if (rule->second[tensor]) tile.seconds = (REAL *)rule->second[tensor] + from;
    return tile;
}

/* Copies the elements of a tile back to the narrow streams. */
static void NAME(close_tile)(const NAME(Work) *work, const NAME(Tile) *tile, int64_t tensor, int64_t from,
                             int64_t count) {
#if MAY_BE_NARROW
    const Job *job = work->job;
    const Rule *rule = work->rule;
    if (!work->is_narrow) return;
    if (job->param_kind != WIDE)
        round_into(count, (uint16_t *)job->params[tensor] + from, tile->params,
                   NAME(kept_of)(work, tensor, from));
    if (tile->firsts)
        NAME(close_moments)(job, rule->first, rule->first_scales, tensor, from, count, rule->first_kind, 0,
                            !tile->seconds, tile->firsts);
    if (tile->seconds)
        NAME(close_moments)(job, rule->second, rule->second_scales, tensor, from, count, rule->second_kind, 1,
                            1, tile->seconds);
#endif
    (void)work, (void)tile, (void)tensor, (void)from, (void)count;
}

/* Makes shadows: copies parameters to their shadows. */
static void NAME(copy_to_shadows)(const NAME(Work) *work, int64_t tensor, Share part, REAL *shadows) {
    const int64_t count = part.end - part.begin;
#if MAY_BE_NARROW
    if (work->job->param_kind != WIDE) {
        widen(count, shadows, (uint16_t *)work->job->params[tensor] + part.begin, work->job->param_kind);
        return;
    }
#endif
    memcpy(shadows, (REAL *)work->job->params[tensor] + part.begin, sizeof(REAL) * (size_t)count);
}

/* The averages of the rows and of the columns of a matrix, in REAL. */
INLINE REAL *NAME(rows_of)(const NAME(Work) *work, int64_t tensor) {
    return work->averages ? work->averages + work->averages_at[tensor] : (REAL *)work->rule->first[tensor];
}

INLINE REAL *NAME(columns_of)(const NAME(Work) *work, int64_t tensor) {
    return work->averages ? work->averages + work->averages_at[tensor] + work->job->rows[tensor]
                          : (REAL *)work->rule->second[tensor];
}

/* Copies averages of rows and columns to REAL, if they are narrow. Returns 1, or 0 if memory is missing. */
static int NAME(open_averages)(NAME(Work) *work) {
#if MAY_BE_NARROW
    const Job *job = work->job;
    const Rule *rule = work->rule;
    if (rule->kind != FACTORS || (rule->first_kind == WIDE && rule->second_kind == WIDE)) return 1;
    int64_t end = 0;
    work->averages_at = malloc(sizeof(int64_t) * (size_t)(job->tensors + 1));
    if (!work->averages_at) return 0;
    for (int64_t tensor = 0; tensor < job->tensors; tensor++) {
        work->averages_at[tensor] = end;
        if (NAME(has_factors)(work, tensor)) end += job->rows[tensor] + job->columns[tensor];
    }
    work->averages = malloc(sizeof(REAL) * (size_t)(end + 1));
    if (!work->averages) return 0;
    for (int64_t tensor = 0; tensor < job->tensors; tensor++) {
        if (!NAME(has_factors)(work, tensor)) continue;
        widen(job->rows[tensor], NAME(rows_of)(work, tensor), rule->first[tensor], rule->first_kind);
        widen(job->columns[tensor], NAME(columns_of)(work, tensor), rule->second[tensor], rule->second_kind);
    }
#endif
    (void)work;
    return 1;
}

static void NAME(close_averages)(const NAME(Work) *work) {
#if MAY_BE_NARROW
    const Job *job = work->job;
    const Rule *rule = work->rule;
    for (int64_t tensor = 0; work->averages && tensor < job->tensors; tensor++) {
        if (!NAME(has_factors)(work, tensor)) continue;
        narrow(job->rows[tensor], rule->first[tensor], NAME(rows_of)(work, tensor), 0, rule->first_kind);
        narrow(job->columns[tensor], rule->second[tensor], NAME(columns_of)(work, tensor), 0,
               rule->second_kind);
    }
#endif
    (void)work;
}

#define POINTERS(work, tensor, from)                                                               \
    const Job *job = (work)->job;                                                                  \
    REAL *shadows = job->shadows ? (REAL *)job->shadows[tensor] + (from) : NULL;                   \
    const int wakes = shadows != NULL && (work)->wakes;                                            \
    const int blends = wakes && *job->shadows_exist[tensor] && !(work)->blends_before
