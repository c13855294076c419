/* Included by cpu_coded.h for every processor, and once more for processors that look up 64 bytes at once.
 *
 * In one loop a piece of a block is decoded and stepped: the processor decodes while it waits for a root. The moments
 * of a block stay in the first cache until the block is encoded. */

INLINE CODED_TARGET void CODED(step_as)(
    int64_t count, float *restrict params, const float *restrict grads, uint8_t *restrict firsts,
    float *restrict first_scales, uint8_t *restrict seconds, float *restrict second_scales, const Code *tables,
    const Signal_float *given, const int rule) {
    Signal_float own = *given, *signal = &own;
    own.sign = 1; /* `step_coded` asks for these two numbers: compilers then know them. */
    own.keeps_all = 0;
    float first[CODED_BLOCK] __attribute__((aligned(64))), second[CODED_BLOCK] __attribute__((aligned(64)));
    const Decoder first_decoder = DECODER(tables, 0), second_decoder = DECODER(tables + 1, 1);
    for (int64_t start = 0; start < count; start += CODED_BLOCK) {
        const int64_t many = block_at(start, count), block = start / CODED_BLOCK;
        int64_t index = 0;
        for (; index + PIECE <= many; index += PIECE) {
            const int64_t place = start + index;
            DECODE(first + index, firsts + place, first_scales[block], &first_decoder, 0);
            if (rule == ADAM)
                DECODE(second + index, seconds + place, second_scales[block], &second_decoder, 1);
            elements_float(PIECE, params + place, grads + place, first + index, second + index, NULL, signal, 1, rule,
                           DECOUPLED, 0, NOT_NARROW);
        }
        if (index < many) {
            const int64_t place = start + index, left = many - index;
            decode_block(left, first + index, firsts + place, first_scales[block], tables);
            if (rule == ADAM) decode_block(left, second + index, seconds + place, second_scales[block], tables + 1);
            elements_float(left, params + place, grads + place, first + index, second + index, NULL, signal, 1, rule,
                           DECOUPLED, 0, NOT_NARROW);
        }
        /* Both scales come first, so that the processor need not wait for each of them. */
        const float most = rule == ADAM ? MOST_BESIDE_SQUARE : MOST_COUNTED;
        first_scales[block] = scale_of(many, first, most);
        if (rule == ADAM) second_scales[block] = scale_of(many, second, MOST_COUNTED);
        encode_block(many, firsts + start, first_scales[block], first, tables, 0, most);
        if (rule == ADAM) encode_block(many, seconds + start, second_scales[block], second, tables + 1, 1, MOST_COUNTED);
    }
}

CODED_TARGET static void CODED(step_adam)(
    int64_t count, float *params, const float *grads, uint8_t *firsts, float *first_scales, uint8_t *seconds,
    float *second_scales, const Code *tables, const Signal_float *signal) {
    CODED(step_as)(count, params, grads, firsts, first_scales, seconds, second_scales, tables, signal, ADAM);
}

CODED_TARGET static void CODED(step_lion)(
    int64_t count, float *params, const float *grads, uint8_t *firsts, float *first_scales, uint8_t *seconds,
    float *second_scales, const Code *tables, const Signal_float *signal) {
    CODED(step_as)(count, params, grads, firsts, first_scales, seconds, second_scales, tables, signal, LION);
}
