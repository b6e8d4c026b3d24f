# The historic small shape, 4 layers, 6 heads, width 384, for a card of 8 GB. Needs data/openwebtext.
# python train.py config/config_small_bio_3070.py           its control: the same, with --use_bio_mlp=False
out_dir = "out/small_bio"
eval_interval = 1000
eval_iters = 40  # x 12 windows, whatever the micro-batch
log_interval = 10

dataset = "openwebtext"
block_size = 1024
tokens_per_step = 32768  # 32 sequences, as in config_gpt2_bio_3070.py
batch_size = "auto"  # as many of them at once as the card is measured to hold; without a CUDA card give a number

n_layer = 4
n_head = 6
n_embd = 384
use_bio_mlp = True
bio_gate = "feature"  # history's was "dense", which makes 45.3M parameters of 26.4M and has to be let past max_blowup

learning_rate = 6e-4
max_iters = 200000
warmup_iters = 2000
