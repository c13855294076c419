"""Faults in the compiled code of moments in 8 bits, for `parity_tests.faults`."""

from parity_tests.fault import Fault

FAULTS_IN_CODES = tuple(
    Fault("emo_torch", f"_kernels/cpu_{file}.h", old, new, f"compiled codes: {what}", by, is_coded=True)
    for file, old, new, what, by in (
        ("codes", "(int32_t)size_bits(wide", "(int32_t)bits_of(wide", "a scale without size", "EmoCats"),
        ("codes", "CODED_BLOCK = 256,", "CODED_BLOCK = 512,", "blocks of 512", "EmoSens"),
        ("codes", "code = units / UNITS;", "code = (units + UNITS / 2) / UNITS;", "rounded up", "EmoSens"),
        ("codes", "+ (share > table->middles[code])", "", "no comparison with the midpoint", "EmoSens"),
        ("codes", "squares ? code == 0 :", "squares ? 0 :", "a small square is 0", "EmoSens"),
        (
            "codes",
            "encode_block(block_at(start, count), codes",
            "encode_block(block_at(start, count) & ~7, codes",
            "the end of a short block is not written",
            "EmoCats",
        ),
        ("codes", "start += CODED_BLOCK, scales++)", "start += CODED_BLOCK)", "one old scale", "EmoCats"),
        (
            "coded_loop",
            "second_scales[block], &second_decoder",
            "first_scales[block], &second_decoder",
            "the scale of another moment",
            "EmoSens",
        ),
    )
)

FAULTS_IN_AVX512 = tuple(
    Fault("emo_torch", "_kernels/cpu_codes_avx512.h", old, new, f"AVX-512: {what}", by, is_coded=True)
    for old, new, what, by in (
        ("SIGNED_ZERO + 1 - 256)", "SIGNED_ZERO - 256)", "negative codes one lower", "EmoCats"),
        (
            "memcpy(codes + index, found, (size_t)(count - index));",
            "memcpy(codes + index, found, (size_t)(count - index) / 2);",
            "half of a short block is not written",
            "EmoSens",
        ),
    )
)
