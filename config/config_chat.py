# A model of yours, or GPT-2, fine-tuned on conversations, to be talked to by sample_bio.py --chat.
#
#     python train.py config/quickstart.py --block_size=256 --batch_size=6 --max_iters=2000 --out_dir=out/base
#     python prepare_data.py studies/chat/exchanges.jsonl --chat --init_from=out/base
#     python train.py config/config_chat.py
#
# Time: 9:11 min of training for the first command, 34 s for the last, on one thread of a busy AMD EPYC. Expected: the
# held-out loss of the assistant's characters falls from 4.59, where the marks are new to the model, to 0.097 +- 0.041;
# on two threads, which round otherwise, from 4.56 to 0.118 +- 0.047.
# For GPT-2 leave --init_from=out/base out of the second and give --init_from=gpt2 to the third (not measured).
out_dir = "out/chat"
init_from = "out/base"  # a checkpoint or a run's folder; or gpt2, for conversations prepared without --init_from
eval_interval = 50
eval_iters = 0  # all held-out conversations
log_interval = 50
always_save_checkpoint = False  # few conversations are soon known by heart: keep the best checkpoint only

dataset = "exchanges"
batch_size = 4  # rows, each of as many whole conversations as fit
gradient_accumulation_steps = 1

learning_rate = 1e-3
max_iters = 200
warmup_iters = 10
beta2 = 0.99  # a step holds few targets, so AdamW's average of squares should be long
