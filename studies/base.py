# What the studies share: nanoGPT's CPU shape on the complete works, AdamW, short enough for hundreds of runs.
# A run is 500 steps of 768 characters: about 40 s on one core, the last evaluation (half of validation) included.
eval_interval = 125
eval_iters = 10
log_interval = 50

dataset = "shakespeare_works"
batch_size = 12
gradient_accumulation_steps = 1
block_size = 64

n_layer = 4
n_head = 4
n_embd = 128
bio_gate = "none"  # where mlp=bio: the pure oscillation, unless a study varies the gate
position = "rope"  # with learned positions 500 steps end where attention sets in, at a step that hangs on the seed
qk_norm = True

learning_rate = 6e-3
max_iters = 500
warmup_iters = 50
beta2 = 0.99  # a step holds few tokens
