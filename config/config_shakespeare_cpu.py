# Characters on a CPU: the setting of nanoGPT's README (4 layers, width 128, block 64, 2,000 steps of 12 sequences).
# python prepare_data.py shakespeare_char --input=FILE, then python train.py config/config_shakespeare_cpu.py
out_dir = "out/shakespeare_cpu"
eval_interval = 250
eval_iters = 20
log_interval = 50

dataset = "shakespeare_char"
batch_size = 12
gradient_accumulation_steps = 1
block_size = 64

n_layer = 4
n_head = 4
n_embd = 128
dropout = 0.0  # 2,000 steps are less than two epochs: nothing to overfit
use_bio_mlp = True
bio_gate = "none"  # the pure oscillation; "feature" costs a little more and gates it

learning_rate = 3e-3
max_iters = 2000
beta2 = 0.99  # a step holds few tokens
warmup_iters = 100
