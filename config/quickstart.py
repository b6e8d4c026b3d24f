# The first run: an oscillating GPT on Shakespeare's complete works, which it prepares itself, for two CPU cores.
#
#     python train.py config/quickstart.py
#     python train.py config/quickstart.py --use_bio_mlp=False --out_dir=out/control      (its GELU control)
#
# Time: 1:34 to 2:30 min with installation, on two idle cores of an AMD EPYC. Expected: validation loss 1.527 +- 0.009.
out_dir = "out/quickstart"
eval_interval = 500  # three evaluations, and three chances to go on after a stop
eval_iters = 50  # x 12 windows of 64 characters: a standard error of 0.009
log_interval = 100
final_sample = 600  # characters, to see what was learned

dataset = "shakespeare_works"
gradient_accumulation_steps = 1  # one micro-batch of 12: small batches and many steps learn most in a CPU's time
block_size = 64  # nanoGPT's CPU shape, with the three sizes below

n_layer = 4
n_head = 4
n_embd = 128
use_bio_mlp = True  # the oscillation with the feature gate; False is the control
position = "rope"  # with learned positions so few steps end while attention is still setting in (LOG.md)
qk_norm = True  # without it 1.918 for 1.890 in config_shakespeare_cpu_fast.py (LOG.md)
c_fc_std = "unit"  # at GPT-2's 0.02 bio ends 0.02 higher, GELU 0.005 (LOG.md)

optimizer_type = "muon"  # on tinyshakespeare, 300 steps, without gate: 1.86 where AdamW is at 2.02 (LOG.md)
learning_rate = 1e-2  # 5e-3 to 2e-2 serve alike
lr_schedule = "wsd"  # a constant rate, then a linear decay: its length can change without tuning anew
decay_fraction = 0.7  # of so short a run most is decay
min_lr = 0.0  # wsd decays to nothing
max_iters = 1500
warmup_iters = 20
grad_clip = 0.0  # an orthogonalised update has its size whatever the gradient's
beta2 = 0.99  # a step holds few tokens, so AdamW's average of squares (embeddings) should be long
