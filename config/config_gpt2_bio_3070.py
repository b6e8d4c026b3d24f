# GPT-2's shape with oscillating neurons and the feature gate, for a card of 8 GB. Needs data/openwebtext.
# python train.py config/config_gpt2_bio_3070.py           its control: the same, with --use_bio_mlp=False
out_dir = "out/gpt2_bio"
eval_interval = 1000
eval_iters = 40  # x 12 windows, whatever the micro-batch
log_interval = 10

dataset = "openwebtext"
block_size = 1024
tokens_per_step = 32768  # 32 sequences, history's 2 x 16
# How many of them fit at once, beside 2 GB of weights, gradients and moments, was not tried for want of a 3070: the
# start of a run measures it. Without a CUDA card give a number.
batch_size = "auto"

n_layer = 12
n_head = 12
n_embd = 768
use_bio_mlp = True
bio_gate = "feature"

learning_rate = 6e-4
max_iters = 200000  # 6.6 billion tokens
warmup_iters = 2000
