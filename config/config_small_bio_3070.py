# The historic small shape, 4 layers, 6 heads, width 384, on OpenWebText, for a card of 8 GB.
#
#     python prepare_data.py openwebtext          (once: some 18 GB of tokens; may be stopped and resumed)
#     python train.py config/config_small_bio_3070.py
#     python train.py config/config_small_bio_3070.py --use_bio_mlp=False --out_dir=out/small     (its GELU control)
#
# nanoGPT's train.bin and val.bin serve as well. Time and expected loss: not measured, for want of a card.
# Context 1,024, the rate of 6e-4 and its warm-up are the defaults.
out_dir = "out/small_bio"
eval_interval = 1000
eval_iters = 40  # x 12 windows, whatever the micro-batch
log_interval = 10  # each logged step waits for the card once

tokens_per_step = 32768  # 32 sequences, as in config_gpt2_bio_3070.py
batch_size = "auto"  # the start of a run measures how many sequences fit; without a CUDA card give a number

n_layer = 4
n_head = 6
n_embd = 384
# The gate is the feature gate. The historic one, --bio_gate=dense, makes 45.3M parameters of 26.4M and has to be let
# past the alarm with --max_blowup.
use_bio_mlp = True

max_iters = 200000  # 6.6 billion tokens, as many as in config_gpt2_bio_3070.py
