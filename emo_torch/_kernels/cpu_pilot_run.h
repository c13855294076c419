/* Included by cpu.c, once for each dtype: a pass of EmoPilot over all tensors, in several threads.
 *
 * Both passes cut tensors into blocks that depend only on the shapes of the tensors. The sums of the blocks are
 * added up in the order of the blocks, so that the bits are the same for any number of threads. A thread has the
 * same blocks in both passes. The second pass begins with the last block, which is still in the cache. */

/* The elements of a block, and for a matrix the least rows and the largest number of blocks. */
#define PILOT_BLOCK 65536
#define PILOT_ROWS 64

/* The stages of both passes. MEASURE is the first pass, MOVE the second pass. With factors the second pass begins with
 * SETTLE and SIZE, since a tensor moves by the size of its whole update. */
#define MEASURE 0
#define SETTLE 1
#define SIZE 2
#define MOVE 3

/* A pass, and the memory that threads share. */
typedef struct {
    const Job *job;
    int64_t *starts;       /* the first element of each tensor */
    int64_t *first_blocks; /* the index of each tensor's first block */
    int64_t *factors_at;   /* the index in `Pilot.factors` of each matrix */
    int64_t *shared_at;    /* the index in `shared` of each matrix that threads share */
    int64_t shares;        /* the number of shares of all elements: one for each thread */
    int64_t longest;       /* the largest number of columns */
    double *sums;          /* four sums for each block */
    REAL *narrow;          /* for each share: the sums by column of one block */
    REAL *shared;          /* the sums by column of each block of the matrices that threads share */
} NAME(Pass);

INLINE int64_t NAME(pilot_unit)(const Job *job, int64_t tensor) {
    if (!NAME(is_matrix)(job, tensor)) return PILOT_BLOCK;
    const int64_t columns = job->columns[tensor], share = (job->rows[tensor] + PILOT_ROWS - 1) / PILOT_ROWS;
    int64_t rows = PILOT_BLOCK / columns;
    if (rows < PILOT_ROWS) rows = PILOT_ROWS;
    return (rows > share ? rows : share) * columns;
}

INLINE int64_t NAME(pilot_blocks)(const Job *job, int64_t tensor) {
    const int64_t unit = NAME(pilot_unit)(job, tensor);
    return (size_of(job, tensor) + unit - 1) / unit;
}

/* Whether all blocks of a tensor belong to one share. A block belongs to the share with its first element. */
INLINE int NAME(is_whole)(const NAME(Pass) *pass, int64_t tensor, Share own) {
    const int64_t first = pass->starts[tensor];
    const int64_t last = first + (NAME(pilot_blocks)(pass->job, tensor) - 1) * NAME(pilot_unit)(pass->job, tensor);
    return first >= own.begin && last < own.end;
}

INLINE REAL *NAME(factors_of)(const NAME(Pass) *pass, int64_t tensor) {
    return (REAL *)pass->job->pilot->factors + pass->factors_at[tensor];
}

/* One block in the pass that measures, if a matrix has sums by row and by column. */
static void NAME(measure_matrix)(const NAME(Pass) *pass, const NAME(Work) *work, int64_t tensor, Share block,
                                 int64_t place, int64_t number, int is_whole, double *sums) {
    const int64_t rows = pass->job->rows[tensor], columns = pass->job->columns[tensor];
    REAL *factors = NAME(factors_of)(pass, tensor), *narrow = pass->narrow + number * pass->longest;
    if (!is_whole) narrow = pass->shared + pass->shared_at[tensor] + place * columns;
    NAME(measure_rows)(work, tensor, block, factors, narrow, sums);
    for (int64_t column = 0; is_whole && column < columns; column++) factors[rows + column] += narrow[column];
}

/* The number by which a tensor's update is multiplied: 1 over the root of the mean square, and at most 1. */
static REAL NAME(shrink_of)(const NAME(Pass) *pass, int64_t tensor) {
    const double *own = pass->sums + 4 * pass->first_blocks[tensor];
    double sum = 0;
    for (int64_t block = 0; block < NAME(pilot_blocks)(pass->job, tensor); block++) sum += own[4 * block];
    const REAL size = (REAL)sqrt(sum / (double)size_of(pass->job, tensor));
    return size < 1 ? 1 : 1 / size;
}

/* The blocks of a tensor that belong to a share, in one stage. */
static void NAME(stage_of_tensor)(const NAME(Pass) *pass, const NAME(Work) *work, int64_t tensor, Share own,
                                  int64_t number, int stage, NAME(Corrections) *found) {
    const Job *job = pass->job;
    const int64_t size = size_of(job, tensor), unit = NAME(pilot_unit)(job, tensor);
    const int64_t many = NAME(pilot_blocks)(job, tensor), start = pass->starts[tensor];
    const int has_factors = job->rule[0].kind == PILOT_FACTORS, is_matrix = NAME(is_matrix)(job, tensor);
    const int is_whole = has_factors && NAME(is_whole)(pass, tensor, own);
    const int turns = has_factors && stage != MEASURE;
    REAL *factors = is_matrix ? NAME(factors_of)(pass, tensor) : NULL;
    NAME(Flight) flight;
    if (turns) flight = NAME(flight_of)(job, tensor, found);
    if (stage == SETTLE) {
        if (is_matrix && start >= own.begin) NAME(settle_matrix)(job, tensor, factors, &flight);
        return;
    }
    const REAL shrink = turns && stage == MOVE ? NAME(shrink_of)(pass, tensor) : 1;
    for (int64_t step = 0; step < many; step++) {
        const int64_t place = stage == MOVE ? many - 1 - step : step, from = place * unit;
        if (start + from < own.begin || start + from >= own.end) continue;
        const Share block = {from, size - from < unit ? size : from + unit};
        double *sums = pass->sums + 4 * (pass->first_blocks[tensor] + place);
        if (turns) NAME(turn_block)(work, tensor, block, factors, &flight, shrink, stage == MOVE, sums);
        else if (stage == MOVE) NAME(move_block)(work, tensor, block, found, sums);
        else if (is_matrix) NAME(measure_matrix)(pass, work, tensor, block, place, number, is_whole, sums);
        else NAME(measure_block)(work, tensor, block, sums);
    }
}

/* All tensors of a share in one stage. With factors a whole tensor takes all stages of the second pass in SETTLE,
 * while it is in the cache. */
static void NAME(pilot_share)(const NAME(Pass) *pass, int64_t number, int stage) {
    const Job *job = pass->job;
    const Rule *rule = &job->rule[0];
    const int64_t last = job->tensors - 1;
    const Share own = share_of(pass->starts[job->tensors], number, pass->shares);
    REAL room[4 * ROOM];
    const NAME(Work) work = {
        .job = job,
        .rule = rule,
        .is_narrow = job->param_kind != WIDE || job->grad_kind != WIDE || rule->first_kind != WIDE ||
                     rule->second_kind != WIDE,
        .room = room,
        .tile_room = ROOM,
    };
    NAME(Corrections) found = {-1, 0, 0};
    for (int64_t turn = 0; turn <= last; turn++) {
        const int64_t tensor = stage == MEASURE ? turn : last - turn;
        if (pass->starts[tensor] >= own.end || pass->starts[tensor + 1] <= own.begin) continue;
        const int turns = rule->kind == PILOT_FACTORS && stage != MEASURE;
        const int is_whole = turns && NAME(is_whole)(pass, tensor, own);
        if (is_whole && stage != SETTLE) continue;
        NAME(stage_of_tensor)(pass, &work, tensor, own, number, stage, &found);
        for (int next = SIZE; is_whole && next <= MOVE; next++)
            NAME(stage_of_tensor)(pass, &work, tensor, own, number, next, &found);
    }
}

/* Elements of a tensor, spread over the tensor, which show whether the weights were written without a new version. */
INLINE double NAME(mark)(const Job *job, int64_t tensor, int place) {
    const int64_t last = size_of(job, tensor) - 1;
    return last < 0 ? 0 : ((const REAL *)job->params[tensor])[last * place / (MARKS - 1)];
}

/* Compares the marks of the tensors whose squares are known; other marks make the squares unknown. */
static void NAME(compare_marks)(const Job *job) {
    const Pilot *pilot = job->pilot;
    for (int64_t tensor = 0; tensor < job->tensors; tensor++)
        for (int place = 0; pilot->known[tensor] && place < MARKS; place++)
            if (pilot->marks[MARKS * tensor + place] != NAME(mark)(job, tensor, place)) pilot->known[tensor] = 0;
}

/* Makes the memory of a pass; returns 0, or 1 if memory is missing. */
static int NAME(open_pass)(NAME(Pass) *pass) {
    const Job *job = pass->job;
    const size_t numbers = sizeof(int64_t) * ((size_t)job->tensors + 1);
    int64_t blocks = 0, total = 0, factors = 0, shared = 0;
    pass->starts = malloc(numbers);
    pass->first_blocks = malloc(numbers);
    pass->factors_at = malloc(numbers);
    pass->shared_at = malloc(numbers);
    if (!pass->starts || !pass->first_blocks || !pass->factors_at || !pass->shared_at) return 1;
    for (int64_t tensor = 0; tensor < job->tensors; tensor++) {
        pass->first_blocks[tensor] = blocks;
        pass->starts[tensor] = total;
        pass->factors_at[tensor] = factors;
        blocks += NAME(pilot_blocks)(job, tensor);
        total += size_of(job, tensor);
        if (!NAME(is_matrix)(job, tensor)) continue;
        factors += job->rows[tensor] + job->columns[tensor];
        if (job->columns[tensor] > pass->longest) pass->longest = job->columns[tensor];
    }
    pass->starts[job->tensors] = total;
    for (int64_t tensor = 0; tensor < job->tensors; tensor++) {
        int is_whole = !NAME(is_matrix)(job, tensor);
        for (int64_t number = 0; !is_whole && number < pass->shares; number++)
            is_whole = NAME(is_whole)(pass, tensor, share_of(total, number, pass->shares));
        pass->shared_at[tensor] = is_whole ? -1 : shared;
        if (!is_whole) shared += NAME(pilot_blocks)(job, tensor) * job->columns[tensor];
    }
    pass->sums = calloc(4 * (size_t)blocks + 1, sizeof(double));
    pass->narrow = malloc(sizeof(REAL) * ((size_t)(pass->shares * pass->longest) + 1));
    pass->shared = malloc(sizeof(REAL) * ((size_t)shared + 1));
    if (!pass->sums || !pass->narrow || !pass->shared) return 1;
    if (job->pilot->measures && factors) memset(job->pilot->factors, 0, sizeof(REAL) * (size_t)factors);
    return 0;
}

/* Adds up the sums of a tensor's blocks, in their order. */
static void NAME(close_tensor)(const NAME(Pass) *pass, int64_t tensor) {
    const Job *job = pass->job;
    const Pilot *pilot = job->pilot;
    const int weighs = pilot->measures ? NAME(weighs)(pilot, tensor) : (int)pilot->weighs;
    const int64_t blocks = NAME(pilot_blocks)(job, tensor), columns = job->columns[tensor];
    const double *own = pass->sums + 4 * pass->first_blocks[tensor];
    if (weighs) pilot->squares[tensor] = 0;
    for (int64_t block = 0; block < blocks; block++, own += 4) {
        /* In the pass that moves, the first sum is the size of the update. */
        for (int kind = pilot->measures ? 0 : 1; kind < 3; kind++) pilot->products[kind] += own[kind];
        if (weighs) pilot->squares[tensor] += own[3];
    }
    if (!pilot->measures) {
        /* Written after all blocks: other threads read the old number of steps. */
        *pilot->steps[tensor] += 1;
        for (int place = 0; pilot->weighs && place < MARKS; place++)
            pilot->marks[MARKS * tensor + place] = NAME(mark)(job, tensor, place);
    } else if (pass->shared_at[tensor] >= 0) {
        REAL *sums = NAME(factors_of)(pass, tensor) + job->rows[tensor];
        const REAL *narrow = pass->shared + pass->shared_at[tensor];
        for (int64_t block = 0; block < blocks; block++, narrow += columns)
            for (int64_t column = 0; column < columns; column++) sums[column] += narrow[column];
    }
}

/* Takes one of the two passes; returns 0, or 1 if memory is missing, before anything has changed. */
static int NAME(pilot_pass)(const Job *job) {
    const Pilot *pilot = job->pilot;
    NAME(Pass) pass = {.job = job, .shares = job->threads};
    const int fails = NAME(open_pass)(&pass);
    if (!fails) {
        const int first = pilot->measures ? MEASURE : job->rule[0].kind == PILOT_FACTORS ? SETTLE : MOVE;
        if (pilot->measures && pilot->known != NULL) NAME(compare_marks)(job);
#pragma omp parallel num_threads((int)job->threads)
        {
            /* OpenMP may give fewer threads than `job->threads`. */
            const int64_t thread = omp_get_thread_num(), threads = omp_get_num_threads();
            for (int stage = first; stage <= (pilot->measures ? MEASURE : MOVE); stage++) {
                for (int64_t number = thread; number < pass.shares; number += threads)
                    NAME(pilot_share)(&pass, number, stage);
#pragma omp barrier
            }
        }
        for (int64_t tensor = 0; tensor < job->tensors; tensor++) NAME(close_tensor)(&pass, tensor);
    }
    void *rooms[] = {pass.starts, pass.first_blocks, pass.factors_at, pass.shared_at,
                     pass.sums,   pass.narrow,       pass.shared};
    for (size_t room = 0; room < sizeof(rooms) / sizeof(*rooms); room++) free(rooms[room]);
    return fails;
}

#undef PILOT_BLOCK
#undef PILOT_ROWS
#undef MEASURE
#undef SETTLE
#undef SIZE
#undef MOVE
