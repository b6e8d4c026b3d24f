# nanoGPT's CPU model and corpus (4 layers, width 128, block 64, tinyshakespeare) to its published loss of 1.88, soon.
#
#     python prepare_data.py shakespeare_char --input=FILE && python train.py config/config_shakespeare_cpu_fast.py
#
# Time: 10 s of training on two cores of an AMD EPYC at half of its usual speed, a ninth of the plain loop's. Expected:
# 1.885, 1.866, 1.875 with seeds 1 to 3 (LOG.md).
out_dir = "out/shakespeare_cpu_fast"
eval_interval = 1000  # at the end alone
eval_iters = 0  # the whole validation set
log_interval = 50

dataset = "shakespeare_char"
gradient_accumulation_steps = 1  # one micro-batch of 12; larger batches in fewer steps learn less a token (LOG.md)
block_size = 64

n_layer = 4
n_head = 4
n_embd = 128
bias = True  # worth 0.008 here
use_bio_mlp = True  # GELU is 0.09 behind after so few steps, at the same rate and initial scale
bio_gate = "none"  # the gate costs steps at the start
position = "rope"  # learned positions delay the step at which attention sets in
qk_norm = True  # without it 1.918 for 1.890
c_fc_std = "unit"  # at GPT-2's 0.02 it takes 187 steps, at the rate 1e-2

optimizer_type = "muon"  # AdamW is 0.16 behind after 300 steps
learning_rate = 1.4e-2  # after 165 steps 1.880, with 1e-2 1.883, with 2e-2 1.893 (means of three seeds)
lr_schedule = "wsd"  # a constant rate, then a linear decay
decay_fraction = 0.85  # of so short a run most is decay
min_lr = 0.0  # wsd decays to nothing
max_iters = 170
warmup_iters = 5
grad_clip = 0.0  # an orthogonalised update has its size whatever the gradient's
beta1 = 0.85  # Muon's momentum, too: 0.9 is 0.006 behind in so few steps
beta2 = 0.99  # a step holds few tokens, so AdamW's average of squares (embeddings) should be long
