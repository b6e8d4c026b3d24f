# Shakespeare by characters on a card: nanoGPT's 6 layers, 6 heads, width 384, context of 256.
#
#     python train.py config/config_shakespeare_bio_3070.py
#     python train.py config/config_shakespeare_bio_3070.py --use_bio_mlp=False --out_dir=out/shakespeare  (its control)
#
# Time and expected loss: not measured, for want of a card.
out_dir = "out/shakespeare_bio"
eval_interval = 250  # often, since a model of this size overfits in the end
eval_iters = 50
log_interval = 10  # each logged step waits for the card once
always_save_checkpoint = False  # it overfits in the end: keep the best checkpoint only
final_sample = 1000  # characters, to see what was learned

dataset = "shakespeare_works"
batch_size = 64  # a step at once takes an estimated 1.6 GiB: batch_size="auto" has nothing to gain
gradient_accumulation_steps = 1
block_size = 256

n_layer = 6
n_head = 6
n_embd = 384
dropout = 0.2  # against overfitting
use_bio_mlp = True  # the oscillation with the feature gate

learning_rate = 1e-3  # a small model bears a higher one than GPT-2's 6e-4
max_iters = 5000
warmup_iters = 100
beta2 = 0.99  # a step holds few tokens, so AdamW's average of squared gradients should be long
