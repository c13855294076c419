/* The functions of the library: each calls its version for one level of instructions.
 *
 * ../build.py compiles cpu.c once for each level, and adds the level to the names of the functions. */

#include <stdint.h>

/* In the order of LEVELS in ../build.py. */
enum { PLAIN, AVX2, AVX512, LEVELS };

typedef int (*Step)(const void *job);
typedef void (*AnyBelow)(const uintptr_t *parts, const int64_t *counts, int64_t n, double bound, int threads,
                         uint8_t *found);

#define DECLARE(level)                                                                             \
    int emo_step_float_##level(const void *job);                                                   \
    int emo_step_double_##level(const void *job);                                                  \
    void emo_any_below_float_##level(const uintptr_t *, const int64_t *, int64_t, double, int, uint8_t *); \
    void emo_any_below_double_##level(const uintptr_t *, const int64_t *, int64_t, double, int, uint8_t *);

DECLARE(plain)
#ifdef HAS_AVX2
DECLARE(avx2)
#else
#define emo_step_float_avx2 0
#define emo_step_double_avx2 0
#define emo_any_below_float_avx2 0
#define emo_any_below_double_avx2 0
#endif
#ifdef HAS_AVX512
DECLARE(avx512)
#else
#define emo_step_float_avx512 0
#define emo_step_double_avx512 0
#define emo_any_below_float_avx512 0
#define emo_any_below_double_avx512 0
#endif

static const Step float_steps[LEVELS] = {emo_step_float_plain, emo_step_float_avx2, emo_step_float_avx512};
static const Step double_steps[LEVELS] = {emo_step_double_plain, emo_step_double_avx2,
                                          emo_step_double_avx512};
static const AnyBelow float_looks[LEVELS] = {emo_any_below_float_plain, emo_any_below_float_avx2,
                                             emo_any_below_float_avx512};
static const AnyBelow double_looks[LEVELS] = {emo_any_below_double_plain, emo_any_below_double_avx2,
                                              emo_any_below_double_avx512};

static int level = PLAIN;

static int has(int64_t wanted) {
    if (wanted < 0 || wanted >= LEVELS || float_steps[wanted] == 0) return 0;
#if defined(__x86_64__) || defined(__i386__)
    __builtin_cpu_init();
    if (wanted == AVX2) return __builtin_cpu_supports("avx2") != 0;
    if (wanted == AVX512)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#endif
    return wanted == PLAIN;
}

/* Selects the wanted level, or for -1 the best level of this processor. Returns the level. Returns -1 and changes
 * nothing if the library or the processor lacks the wanted level. */
int64_t emo_use_level(int64_t wanted) {
    if (wanted < 0)
        for (wanted = LEVELS - 1; !has(wanted); wanted--) {
        }
    if (!has(wanted)) return -1;
    level = (int)wanted;
    return wanted;
}

int emo_step_float(const void *job) { return float_steps[level](job); }

int emo_step_double(const void *job) { return double_steps[level](job); }

void emo_any_below_float(const uintptr_t *parts, const int64_t *counts, int64_t n, double bound, int threads,
                         uint8_t *found) {
    float_looks[level](parts, counts, n, bound, threads, found);
}

void emo_any_below_double(const uintptr_t *parts, const int64_t *counts, int64_t n, double bound, int threads,
                          uint8_t *found) {
    double_looks[level](parts, counts, n, bound, threads, found);
}
