# What the studies share: nanoGPT's CPU shape on the complete works, with AdamW, short enough for hundreds of runs.
#
#     bash studies/run.sh                                                (all studies; each is one compare.py command)
#     python train.py studies/base.py --mlp=bio --out_dir=out/study_base     (one run of one arm)
#
# Time: 500 steps of 768 characters take about 40 s on one core, with the last evaluation on half of the validation
# text. Expected there, at the best rates over five seeds: GELU 1.998 +- 0.014, mlp=bio 1.879 +- 0.010.
eval_interval = 125  # four points of a curve
eval_iters = 10  # the last evaluation, by compare.py, takes the whole reporting half
log_interval = 50

dataset = "shakespeare_works"
gradient_accumulation_steps = 1  # one micro-batch of 12, as in nanoGPT's CPU setting
block_size = 64

n_layer = 4
n_head = 4
n_embd = 128
bio_gate = "none"  # where mlp=bio: the pure oscillation, unless a study varies the gate
position = "rope"  # with learned positions 500 steps end where attention sets in, at a step that depends on the seed
qk_norm = True  # chosen together with RoPE, after the first study (LOG.md)

learning_rate = 6e-3  # the best of GELU and of the oscillation without gate; studies sweep it
max_iters = 500
warmup_iters = 50
beta2 = 0.99  # a step holds few tokens, so AdamW's average of squared gradients should be long
