# nanoGPT's CPU model and corpus (4 layers, width 128, block 64, tinyshakespeare) to its published loss of 1.88, soon.
#
#     python prepare_data.py shakespeare_char --input=FILE && python train.py config/config_shakespeare_cpu_fast.py
#
# Time: 5.1 s of training on two idle cores of an AMD EPYC. Expected: 1.892, 1.865, 1.869 with seeds 1 to 3 (LOG.md).
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

optimizer_type = "muon"  # AdamW is 0.16 behind after 300 steps
learning_rate = 1e-2  # 5e-3 to 2e-2 serve alike
lr_schedule = "wsd"  # a constant rate, then a linear decay
decay_fraction = 0.85  # of so short a run most is decay
min_lr = 0.0  # wsd decays to nothing
max_iters = 187
warmup_iters = 5
grad_clip = 0.0  # an orthogonalised update has its size whatever the gradient's
beta1 = 0.85  # Muon's momentum, too: 0.9 is 0.006 behind in so few steps
beta2 = 0.99  # a step holds few tokens, so AdamW's average of squares (embeddings) should be long
