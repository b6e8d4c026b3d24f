# The historic small shape, 4 layers, 6 heads, width 384, for a card of 8 GB. Needs data/openwebtext.
# python train.py config/config_small_bio_3070.py           its control: the same, with --use_bio_mlp=False
out_dir = "out/small_bio"
eval_interval = 1000
eval_iters = 100
log_interval = 10

dataset = "openwebtext"
block_size = 1024
batch_size = 4  # most of the memory goes to the logits, of 50,304 floats a token
gradient_accumulation_steps = 8  # 4 x 8 x 1024 = 32,768 tokens a step, as in config_gpt2_bio_3070.py

n_layer = 4
n_head = 6
n_embd = 384
use_bio_mlp = True
bio_gate = "feature"  # history's was "dense", which makes 45.3M parameters of 26.4M and has to be let past max_blowup

learning_rate = 6e-4
max_iters = 200000
warmup_iters = 2000
