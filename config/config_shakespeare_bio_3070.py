# Shakespeare by characters on a card: nanoGPT's 6 layers, 6 heads, width 384, context of 256.
# python train.py config/config_shakespeare_bio_3070.py           its control: the same, with --use_bio_mlp=False
out_dir = "out/shakespeare_bio"
eval_interval = 250  # often, since a model of this size overfits in the end
eval_iters = 50
log_interval = 10
always_save_checkpoint = False  # keep the best only
final_sample = 1000

dataset = "shakespeare_works"
batch_size = 64  # a whole step at once, of some 1.6 GiB by memory.estimate: nothing for batch_size="auto" to gain
gradient_accumulation_steps = 1
block_size = 256

n_layer = 6
n_head = 6
n_embd = 384
dropout = 0.2
use_bio_mlp = True
bio_gate = "feature"

learning_rate = 1e-3  # a small model bears a high one
max_iters = 5000
warmup_iters = 100
beta2 = 0.99  # a step holds few tokens
