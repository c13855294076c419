/* Included by cpu.c, for float32: the most common steps of moments in 8 bits, without tiles. */

typedef const Code *Whole;
#define CODED(name) name##_blocks
#define CODED_TARGET
#define PIECE CODED_BLOCK
#define Decoder Whole
#define DECODER(table, squares) (table)
#define DECODE(wide, codes, scale, decoder, squares) decode_block(PIECE, wide, codes, scale, *(decoder))
#include "cpu_coded_loop.h"
#undef CODED
#undef CODED_TARGET
#undef PIECE
#undef Decoder
#undef DECODER
#undef DECODE

#ifdef __AVX512F__
#define CODED(name) name##_bytes
#define CODED_TARGET VBMI
#define PIECE 64
#define Decoder Bytes
#define DECODER(table, squares) bytes_of(table, squares)
#define DECODE(wide, codes, scale, decoder, squares) decode_64(wide, codes, scale, decoder, squares)
#include "cpu_coded_loop.h"
#undef CODED
#undef CODED_TARGET
#undef PIECE
#undef Decoder
#undef DECODER
#undef DECODE
#endif

/* Takes the step of elements from the beginning of a block. `rule` is ADAM, or LION without second moments. */
static void coded_step(int64_t count, float *params, const float *grads, uint8_t *firsts, float *first_scales,
                       uint8_t *seconds, float *second_scales, const Code *tables, const Signal_float *signal,
                       int rule) {
#define GIVEN count, params, grads, firsts, first_scales, seconds, second_scales, tables, signal
#ifdef __AVX512F__
    if (has_bytes()) {
        if (rule == ADAM) step_adam_bytes(GIVEN);
        else step_lion_bytes(GIVEN);
        return;
    }
#endif
    if (rule == ADAM) step_adam_blocks(GIVEN);
    else step_lion_blocks(GIVEN);
#undef GIVEN
}
