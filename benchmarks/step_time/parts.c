/* The arithmetic of a step with narrow moments, whole and part by part, on numbers that stay in the first cache.
 * Only the functions of the library are measured: this file has none of its own. */

#include "../../emo_torch/_kernels/cpu.c"

enum { MANY = 1024 };
/* In the order of PARTS in parts.py. */
enum { DECODING, RULE_ALONE, ENCODING, CODED_STEP, NARROW_STEP };

static float params[MANY], grads[MANY], moments[2][MANY];
static uint8_t codes[2][MANY];
static float scales[2][MANY / CODED_BLOCK];
static uint16_t narrow_moments[2][MANY];

/* Gradients with a normal distribution, nearly, and the moments of the first step. */
static void prepare(const Code *tables) {
    uint32_t state = 1;
    for (int64_t index = 0; index < MANY; index++) {
        float sum = -6;
        for (int draw = 0; draw < 12; draw++) {
            state = state * 1664525u + 1013904223u;
            sum += (float)(state >> 8) * 0x1p-24f;
        }
        grads[index] = 1e-3f * sum;
        params[index] = 2e-2f;
        moments[0][index] = 0.1f * grads[index];
        moments[1][index] = 1e-3f * grads[index] * grads[index];
    }
    for (int moment = 0; moment < 2; moment++) {
        encode(MANY, codes[moment], scales[moment], moments[moment], tables + moment, moment, MOST_BESIDE_SQUARE);
        narrow(MANY, narrow_moments[moment], moments[moment], moment, BFLOAT16);
    }
}

/* Runs a part for `count` elements; `rule` is ADAM or LION, and `tables` are as in a Job. */
#ifdef __GNUC__
__attribute__((externally_visible))
#endif
void emo_part(int64_t part, int64_t rule, int64_t count, const Code *tables) {
    const int moments_each = rule == ADAM ? 2 : 1;
    const Signal_float signal = {.sign = 1, .scale = 0.9f, .lr = 1e-6f, .weight_decay = 0.01f, .bound = 1e-36f,
                                 .stay = 1, .b1 = 0.9f, .c1 = 0.1f, .b2 = 0.999f, .c2 = 0.001f, .eps = 1e-8f};
    const Kept kept = {WIDE, BFLOAT16, NEAREST, NULL, 0};
    prepare(tables);
    for (int64_t done = 0; done < count; done += MANY) {
        if (part == DECODING)
            for (int moment = 0; moment < moments_each; moment++)
                decode(MANY, moments[moment], codes[moment], scales[moment], tables + moment, moment);
        else if (part == RULE_ALONE)
            step_elements_float(MANY, params, grads, moments[0], moments[1], NULL, &signal, 1, (int)rule, 0);
        else if (part == ENCODING)
            for (int moment = 0; moment < moments_each; moment++)
                encode(MANY, codes[moment], scales[moment], moments[moment], tables + moment, moment,
                       MOST_BESIDE_SQUARE);
        else if (part == CODED_STEP)
            coded_step(MANY, params, grads, codes[0], scales[0], codes[1], scales[1], tables, &signal, (int)rule);
        else
            step_narrow_float(MANY, params, grads, narrow_moments[0], narrow_moments[1], &signal, (int)rule, kept);
#ifdef __GNUC__
        __asm__ volatile("" ::: "memory");
#endif
    }
}
