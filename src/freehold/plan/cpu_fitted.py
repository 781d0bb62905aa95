"""Constants of plan/cpu_speed.py: written by `python bench/cpu_speed.py --fit`, not by hand."""

CPU = "AMD EPYC"
SOURCE = (
    "129 rows of llama.cpp in xllamacpp 2026.10.11549 on an AMD EPYC with 2 cores, 2026-11-22; "
    "on 22 rows of other models 10% off on average between tokens, 6% until the first"
)
SERIAL = 0.41  # of the shorter of loading and computing, what is not hidden behind the other
ATTENTION_PS = 195.0  # of a core, for one query, key and dimension while tokens are written
KEPT_NS = 79.5  # more for each token before it and each layer, whose keys and values are in memory and in no cache
TURN_NS = 54.1  # more for each of them where several requests have such keys and values
PROMPT_ATTENTION_PS = 48.0  # and while a prompt is read
LAYER_US = 9.64  # of a step for each layer, whatever its size
BARRIER_US = 541.0  # more for each layer where threads wait for one another
STEP_US = 4.96  # of a step
REQUEST_US = 59.6  # of a step for each request
FIRST_US = 1740.0  # of a request, before its first step
CHOICE_NS = 14.7  # to choose among the vocabulary, for each of its tokens
THREAD = 0.799  # of a core's work that each further thread does
TPOT_BAND = (0.849, 1.183)  # of eight of ten rows: measured over predicted
TTFT_BAND = (0.917, 1.072)
VALUE_PS = {  # of a core, for one weight and one of 1, 2, 4, 32 or 512 tokens that are computed together
    "F16": (28.4, 37.7, 42.9, 33.6, 30.3),
    "BF16": (61.9, 28.0, 43.3, 33.4, 31.2),
    "Q8_0": (29.2, 26.1, 28.9, 21.3, 17.6),
    "Q6_K": (31.7, 31.8, 33.9, 18.6, 12.5),
    "Q5_K": (33.7, 33.0, 35.2, 15.6, 11.8),
    "Q4_K": (18.7, 19.1, 19.2, 17.1, 15.2),
    "Q4_0": (29.2, 23.0, 18.2, 18.7, 15.8),
    "Q3_K": (29.1, 34.7, 35.5, 17.7, 12.3),
    "Q2_K": (24.2, 22.1, 23.0, 15.5, 12.4),
    "IQ4_XS": (33.5, 35.2, 35.2, 16.5, 14.1),
}
ROW_NS = {  # to the beginning of a row of a matrix in memory, by kernels for two tokens, which go row by row
    "F16": 66.4,
    "BF16": 83.5,
    "Q8_0": 136,
}
