# Characters on a CPU: the setting of nanoGPT's README (4 layers, width 128, block 64, 2,000 steps of 12 sequences).
#
#     python prepare_data.py shakespeare_char --input=FILE && python train.py config/config_shakespeare_cpu.py
#     python train.py config/config_shakespeare_cpu.py --use_bio_mlp=False --out_dir=out/control   (its GELU control)
#
# Time: about a minute on one core of an AMD EPYC. Expected: 1.704 +- 0.003 over three seeds on half of the validation
# set, GELU at its own best rate of 6e-3 1.766 +- 0.010 (results/nanogpt_cpu); nanoGPT's README gives 1.88.
out_dir = "out/shakespeare_cpu"
eval_interval = 250
eval_iters = 20  # nanoGPT's, for a CPU's sake
log_interval = 50

dataset = "shakespeare_char"
gradient_accumulation_steps = 1  # one micro-batch of 12, nanoGPT's whole step
block_size = 64

n_layer = 4
n_head = 4
n_embd = 128
use_bio_mlp = True
bio_gate = "none"  # the pure oscillation; "feature" costs a little more and gates it

learning_rate = 3e-3  # the best of a sweep for the oscillation (results/nanogpt_cpu)
max_iters = 2000  # less than two epochs: nothing to overfit, so no dropout
warmup_iters = 100
beta2 = 0.99  # a step holds few tokens, so AdamW's average of squared gradients should be long
