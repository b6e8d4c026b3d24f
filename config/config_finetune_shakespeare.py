# GPT-2's weights, fine-tuned on Shakespeare in GPT-2's tokens, for a card of 8 GB. Needs transformers.
#
#     python prepare_data.py shakespeare && python train.py config/config_finetune_shakespeare.py
#
# Time and expected loss: not measured.
out_dir = "out/finetune_shakespeare"
init_from = "gpt2"  # the largest expected to fit 8 GB; gpt2-medium and up need more
eval_interval = 5  # it overfits within a few steps, so evaluate often
eval_iters = 40
always_save_checkpoint = False  # for the same reason keep the best checkpoint only

dataset = "shakespeare"
batch_size = 1  # one sequence of 1,024 tokens at a time, for 8 GB
gradient_accumulation_steps = 32  # 32,768 tokens a step: nine steps are an epoch
bias = True  # GPT-2 has biases

learning_rate = 3e-5  # low: the weights are good already
decay_lr = False  # constant, for 20 steps
warmup_iters = 0
max_iters = 20  # about two epochs
