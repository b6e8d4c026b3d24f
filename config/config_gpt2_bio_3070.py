# GPT-2's shape with oscillating neurons and the feature gate, on OpenWebText, for a card of 8 GB.
#
#     python prepare_data.py openwebtext          (once: some 18 GB of tokens; may be stopped and resumed)
#     python train.py config/config_gpt2_bio_3070.py
#     python train.py config/config_gpt2_bio_3070.py --use_bio_mlp=False --out_dir=out/gpt2       (its GELU control)
#
# nanoGPT's train.bin and val.bin serve as well. Time and expected loss: not measured, for want of a card.
# GPT-2's shape (12 layers, 12 heads, width 768, context 1,024), the rate of 6e-4 and its warm-up are the defaults.
out_dir = "out/gpt2_bio"
eval_interval = 1000
eval_iters = 40  # x 12 windows, whatever the micro-batch
log_interval = 10  # each logged step waits for the card once

tokens_per_step = 32768  # 32 sequences, the 2 x 16 of the historic config; gradient accumulation follows from it
batch_size = "auto"  # the start of a run measures how many sequences fit; without a CUDA card give a number

use_bio_mlp = True  # the oscillation, with the feature gate unless --bio_gate says otherwise

max_iters = 200000  # 6.6 billion tokens
