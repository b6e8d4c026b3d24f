# GPT-2's shape with oscillating neurons and the feature gate, for a card of 8 GB. Needs data/openwebtext.
# python train.py config/config_gpt2_bio_3070.py           its control: the same, with --use_bio_mlp=False
out_dir = "out/gpt2_bio"
eval_interval = 1000
eval_iters = 100
log_interval = 10

dataset = "openwebtext"
block_size = 1024
batch_size = 2  # what fits beside weights, gradients and AdamW's 2 GB
gradient_accumulation_steps = 16  # 2 x 16 x 1024 = 32,768 tokens a step

n_layer = 12
n_head = 12
n_embd = 768
use_bio_mlp = True
bio_gate = "feature"

learning_rate = 6e-4
max_iters = 200000  # 6.6 billion tokens
warmup_iters = 2000
