# The first run: an oscillating GPT on Shakespeare's complete works, sized for two CPU cores. It makes its own data.
# python train.py config/quickstart.py           its control: the same, with --use_bio_mlp=False
out_dir = "out/quickstart"
eval_interval = 500
eval_iters = 50
log_interval = 100
final_sample = 600

dataset = "shakespeare_works"
batch_size = 12
gradient_accumulation_steps = 1  # small batches, many steps: the most learning for a CPU's time
block_size = 64

n_layer = 4
n_head = 4
n_embd = 128
use_bio_mlp = True
bio_gate = "feature"

learning_rate = 3e-3  # a small model bears a high one
max_iters = 2000
warmup_iters = 100
beta2 = 0.99  # a step holds few tokens
