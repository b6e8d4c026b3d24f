# The quick form of the experiment: a run takes seconds, so that all of it fits into a few minutes on two CPU cores.
# python compare.py config/compare_tiny.py --vary mlp=gelu,bio --seeds=3
eval_interval = 100
eval_iters = 20
log_interval = 100

dataset = "shakespeare_works"
batch_size = 12
gradient_accumulation_steps = 1
block_size = 64

n_layer = 2
n_head = 2
n_embd = 64

learning_rate = 3e-3  # a small model bears a high one
max_iters = 400
warmup_iters = 50
beta2 = 0.99  # a step holds few tokens
