/* The least that a step can do: read a gradient, read and write other streams of the same shapes. Where a step
 * has to know a sum first, a pass before only reads. */

#include <stdint.h>

#ifdef _OPENMP
#include <omp.h>
#endif

#define MOST_STREAMS 4

static void touch_1(const float *g, float *restrict a, int64_t n, float scale)
{
    for (int64_t i = 0; i < n; i++)
        a[i] += scale * g[i];
}

static void touch_2(const float *g, float *restrict a, float *restrict b, int64_t n, float scale)
{
    for (int64_t i = 0; i < n; i++) {
        float x = scale * g[i];
        a[i] += x;
        b[i] += x;
    }
}

static void touch_3(const float *g, float *restrict a, float *restrict b, float *restrict c, int64_t n,
                    float scale)
{
    for (int64_t i = 0; i < n; i++) {
        float x = scale * g[i];
        a[i] += x;
        b[i] += x;
        c[i] += x;
    }
}

static void touch_4(const float *g, float *restrict a, float *restrict b, float *restrict c,
                    float *restrict d, int64_t n, float scale)
{
    for (int64_t i = 0; i < n; i++) {
        float x = scale * g[i];
        a[i] += x;
        b[i] += x;
        c[i] += x;
        d[i] += x;
    }
}

/* Touches elements first to last - 1 of all tensors, seen as one after the other. */
static void touch_range(const float *const *grads, float *const *written, const int64_t *ends,
                        int64_t tensors, int32_t streams, float scale, int64_t first, int64_t last)
{
    int64_t begin = 0;
    for (int64_t t = 0; t < tensors && begin < last; begin = ends[t], t++) {
        int64_t from = first > begin ? first : begin;
        int64_t to = last < ends[t] ? last : ends[t];
        if (from >= to)
            continue;
        int64_t at = from - begin, n = to - from;
        const float *g = grads[t] + at;
        float *w[MOST_STREAMS];
        for (int32_t s = 0; s < streams; s++)
            w[s] = written[s * tensors + t] + at;
        if (streams == 1)
            touch_1(g, w[0], n, scale);
        else if (streams == 2)
            touch_2(g, w[0], w[1], n, scale);
        else if (streams == 3)
            touch_3(g, w[0], w[1], w[2], n, scale);
        else
            touch_4(g, w[0], w[1], w[2], w[3], n, scale);
    }
}

static float read_all(const float *a, int64_t n)
{
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++)
        sum += a[i];
    return sum;
}

/* Reads the first streams, and the gradient where all of those are read and one more. */
static float read_range(const float *const *grads, float *const *written, const int64_t *ends, int64_t tensors,
                        int32_t streams, int32_t before, int64_t first, int64_t last)
{
    int64_t begin = 0;
    float sum = 0;
    for (int64_t t = 0; t < tensors && begin < last; begin = ends[t], t++) {
        int64_t from = first > begin ? first : begin;
        int64_t to = last < ends[t] ? last : ends[t];
        /* In parts, so that all streams are read side by side. */
        for (int64_t at = from; at < to; at += 1024) {
            int64_t n = to - at < 1024 ? to - at : 1024;
            for (int32_t s = 0; s < before; s++)
                sum += read_all((s < streams ? written[s * tensors + t] : grads[t]) + (at - begin), n);
        }
    }
    return sum;
}

static volatile float sink;

/* Adds scale times the gradient to 1 to 4 streams; ends[t] is where tensor t ends in the row of all. `before` of
 * the streams are read in a pass before that; one more than there are streams for the gradient, too. */
void touch(const float *const *grads, float *const *written, const int64_t *ends, int64_t tensors,
           int32_t streams, int32_t before, float scale, int32_t threads)
{
    int64_t total = tensors ? ends[tensors - 1] : 0;
#ifdef _OPENMP
#pragma omp parallel num_threads(threads)
    {
        int64_t parts = omp_get_num_threads(), part = omp_get_thread_num();
        if (before > 0) {
            sink = read_range(grads, written, ends, tensors, streams, before, total * part / parts,
                              total * (part + 1) / parts);
#pragma omp barrier
        }
        touch_range(grads, written, ends, tensors, streams, scale, total * part / parts,
                    total * (part + 1) / parts);
    }
#else
    (void)threads;
    if (before > 0)
        sink = read_range(grads, written, ends, tensors, streams, before, 0, total);
    touch_range(grads, written, ends, tensors, streams, scale, 0, total);
#endif
}
