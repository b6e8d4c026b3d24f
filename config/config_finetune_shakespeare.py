# GPT-2's weights, fine-tuned on Shakespeare in GPT-2's tokens. Needs transformers, and
# python prepare_data.py shakespeare
out_dir = "out/finetune_shakespeare"
init_from = "gpt2"  # the largest that an 8 GB card trains; gpt2-medium and up need more
eval_interval = 5
eval_iters = 40
log_interval = 1
always_save_checkpoint = False  # it overfits within a few steps: keep the best only

dataset = "shakespeare"
batch_size = 1
gradient_accumulation_steps = 32  # 32,768 tokens a step: nine steps are an epoch
bias = True  # GPT-2 has biases

learning_rate = 3e-5
decay_lr = False  # a constant, low rate: the weights are good already
warmup_iters = 0
max_iters = 20
