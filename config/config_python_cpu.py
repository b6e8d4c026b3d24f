# Python sources in GPT-2's tokens on a CPU: a 4/6/384-shaped model that oscillates, ten minutes on two cores.
#
#     python prepare_data.py python_packages && python train.py config/config_python_cpu.py
#     python train.py config/config_python_cpu.py --use_bio_mlp=False --out_dir=out/python_gelu     (its GELU control)
#
# Time: about ten minutes on two idle cores (1.45 s a step). Expected after 200 of the 400 steps: val 4.54 +- 0.15,
# 2.84 bits a byte (one seed; 48 windows); the whole run is not measured. Bits a byte are printed beside nats a token:
# they compare with runs on bytes or on other corpora.
out_dir = "out/python_cpu"
eval_interval = 100
eval_iters = 4  # x 12 windows: with 50,257 tokens each window's logits take long on a CPU
log_interval = 10

dataset = "python_packages"
gradient_accumulation_steps = 1  # one micro-batch
batch_size = 4
block_size = 256  # 1,024 tokens a step

n_layer = 4
n_head = 6
n_embd = 384
use_bio_mlp = True
bio_gate = "none"  # the pure oscillation

learning_rate = 1e-3  # nanoGPT's for models of this width
max_iters = 400  # less than 1 % of the corpus: nothing to overfit
warmup_iters = 50
beta2 = 0.99  # a step holds few tokens, so AdamW's average of squared gradients should be long
