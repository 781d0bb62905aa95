"""Constants of plan/cpu_speed.py: written by `python bench/cpu_speed.py --fit`, not by hand."""

CPU = "AMD EPYC"
SOURCE = ""
SERIAL = 0.2
ATTENTION_PS = 120.0
KEPT_GB_S = 4.0
PROMPT_ATTENTION_PS = 50.0
LAYER_US = 10.0
BARRIER_US = 20.0
STEP_US = 100.0
REQUEST_US = 20.0
CHOICE_NS = 5.0
TPOT_BAND = (0.8, 1.25)
TTFT_BAND = (0.7, 1.5)
VALUE_PS = {  # of one weight for one of 1, 2, 4, 32, 512 tokens, on one core
    "F16": (70.0, 100.0, 60.0, 30.0, 28.0),
    "BF16": (90.0, 100.0, 60.0, 30.0, 28.0),
    "Q8_0": (45.0, 100.0, 60.0, 20.0, 18.0),
    "Q6_K": (45.0, 45.0, 45.0, 18.0, 15.0),
    "Q5_K": (45.0, 45.0, 45.0, 18.0, 15.0),
    "Q4_K": (40.0, 40.0, 36.0, 18.0, 15.0),
    "Q4_0": (40.0, 40.0, 36.0, 18.0, 15.0),
    "Q3_K": (40.0, 40.0, 36.0, 18.0, 15.0),
    "Q2_K": (40.0, 40.0, 36.0, 18.0, 15.0),
    "IQ4_XS": (40.0, 40.0, 36.0, 18.0, 15.0),
}
THREAD = 0.95
ROW_NS = 95.0
