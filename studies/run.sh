#!/usr/bin/env bash
# The studies of README.md, in the order of what they answer. Stop it whenever; started again, it goes on.
#   mkdir -p out && nohup bash studies/run.sh > out/studies.log 2>&1 &
#   bash studies/run.sh layers wider_256                  only these
set -u
cd "$(dirname "$0")/.."
mkdir -p out results
PYTHON=${PYTHON:-python}
export OMP_NUM_THREADS=1 # one run a core

RATES=3e-3,6e-3,1.2e-2               # GELU's and the oscillation's optimum is the middle one
LOW=7.5e-4,1.5e-3,3e-3,6e-3,1.2e-2   # where another neuron may want less
HIGH=3e-3,6e-3,1.2e-2,2.4e-2         # and where longer training may want more
WANTED=" $* "

study() { # study NAME FLAGS: into results/NAME, with what earlier studies have run already
    local name=$1 reuse=()
    shift
    [[ $WANTED == "  " || $WANTED == *" $name "* ]] || return 0
    [ -f results/oscillation/runs.jsonl ] && [ "$name" != oscillation ] && reuse=(--reuse=results/oscillation/runs.jsonl)
    echo "=== $name"
    "$PYTHON" compare.py studies/base.py --jobs=2 --out_dir="results/$name" ${reuse[@]+"${reuse[@]}"} "$@"
    case $? in
        0) ;;
        130) exit 130 ;; # stopped by hand
        *) echo "=== $name: some runs failed" ;;
    esac
}

tuned_once() { study "$@" --tuning_seeds=1; } # studies of the time when one tuning seed was the default

# 1. Does the oscillation help?
tuned_once oscillation --vary mlp=gelu,relu2,swiglu,snake,gcu,bio --vary bio_gate=none,feature --seeds=5 --sweep learning_rate=$LOW

# 2. Where does the gain come from? The control is the whole neuron; GELU stands beside it.
A=studies/ablations.py
tuned_once ablations --vary mlp=$A:Full,$A:OmegaOne,$A:PhiZero,$A:Frozen,$A:NoBaseline,$A:NoTanh,$A:NoSine,gelu --seeds=3 --sweep learning_rate=$LOW

# 3. Does it last? Longer first, then (below) wider, and how many layers it is worth; and the first with Muon.
tuned_once longer_3x --vary mlp=gelu,bio --seeds=3 --sweep learning_rate=$HIGH --max_iters=1500 --warmup_iters=150 --eval_interval=375

# 4. The dendritic unit: the start of beta, learned or fixed, K. --keep leaves the gradient norms of each run.
D=(--mlp=dendritic --seeds=3 --sweep learning_rate=$LOW --keep --log_interval=5)
tuned_once dendritic_2 --vary dendritic_beta_init=1.0,0.3,3.0,10.0 "${D[@]}"
tuned_once oscillation_muon --vary mlp=gelu,relu2,bio --seeds=5 --sweep learning_rate=2.5e-3,5e-3,1e-2,2e-2,4e-2 --optimizer_type=muon
tuned_once layers --vary mlp=gelu,bio --vary n_layer=4,3,2 --control="gelu 4" --seeds=3 --sweep learning_rate=1.5e-3,$RATES
tuned_once wider_256 --vary mlp=gelu,bio --seeds=3 --sweep learning_rate=1.875e-4,3.75e-4,$LOW --n_embd=256
tuned_once dendritic_fixed --vary dendritic_beta=layer,fixed --vary dendritic_beta_init=1.0,10.0 --control="layer 1.0" "${D[@]}" --reuse=results/dendritic_2/runs.jsonl
tuned_once dendritic_4 --vary dendritic_beta_init=1.0,0.3,3.0,10.0 --dendritic_branches=4 "${D[@]}"
tuned_once dendritic_4_fixed --vary dendritic_beta=layer,fixed --vary dendritic_beta_init=1.0,10.0 --control="layer 1.0" --dendritic_branches=4 "${D[@]}" \
    --reuse=results/dendritic_4/runs.jsonl
tuned_once longer_10x --vary mlp=gelu,bio --seeds=3 --sweep learning_rate=1.5e-3,$RATES --max_iters=5000 --warmup_iters=500 --eval_interval=1250
tuned_once wider_192 --vary mlp=gelu,bio --seeds=3 --sweep learning_rate=$LOW --n_embd=192

# 5. The first with learned positions, where 500 steps end before attention has set in with every seed: see LOG.md.
tuned_once oscillation_learned_positions --vary mlp=gelu,relu2,swiglu,snake,gcu,bio --vary bio_gate=none,feature --seeds=5 \
    --sweep learning_rate=1.5e-3,$RATES --position=learned --qk_norm=False --eval_iters=20

# 6. At nanoGPT's own CPU setting: its corpus (prepare_data.py shakespeare_char), learned positions, 2,000 steps.
tuned_once nanogpt_cpu --vary mlp=gelu,bio --seeds=3 --sweep learning_rate=1.5e-3,$RATES,2.4e-2 --dataset=shakespeare_char \
    --position=learned --qk_norm=False --max_iters=2000 --warmup_iters=100 --eval_interval=500

# 7. Is it the initial scale? c_fc from GPT-2's 0.02 (x 1) to unit variance (x 4.4) and past it, with each rate. 1.15M tokens.
#    The ledger holds the rate 1.2e-2 too, at which the first six arms were worst at nearly every scale: 7.5e-4 took its place.
study initial_scale --vary mlp=gelu,relu,relu2,swiglu,golu,studies/shapes.py:XErf,sintanh,bio --seeds=12 --finalists=3 \
    --sweep learning_rate=7.5e-4,1.5e-3,3e-3,6e-3 --sweep c_fc_std=None,0.04,unit,0.16 --also c_fc_std=None \
    --max_iters=1500 --warmup_iters=150 --eval_interval=375

# 8. Planned, not run: each arm is tuned over the rate and over the initial scales at which most arms of initial_scale were
#    best. Costs, in README.md, are from 80 to 100 s a run of 1.15M tokens at 0.8M parameters on a core.
SCALES=unit,0.16

# 8a. Which piece carries it, at the best initial scale? FullAgain is the A/A arm; bio is the oscillation with the gate.
study ablation_best_scale --vary mlp=$A:Full,sintanh,$A:Frozen,$A:NoSine,$A:NoTanh,bio,studies/shapes.py:XErf,relu2,studies/another_draw.py:FullAgain \
    --bio_gate=feature --seeds=13 --margin=0.01 --finalists=3 --sweep learning_rate=1.5e-3,$RATES --sweep c_fc_std=$SCALES \
    --max_iters=1500 --warmup_iters=150 --eval_interval=375 --reuse=results/initial_scale/runs.jsonl

# 8b. Optimizer and length: 3.84M tokens. Two studies, since the optimizers' rates lie apart: one grid of both would cost twice.
LONGER=(--vary mlp=gelu,relu2,bio --seeds=8 --margin=0.01 --finalists=3 --max_iters=5000 --warmup_iters=500 --eval_interval=625)
study optimizer_and_length_adamw "${LONGER[@]}" --sweep learning_rate=1.5e-3,3e-3,6e-3 --sweep c_fc_std=$SCALES
study optimizer_and_length_muon "${LONGER[@]}" --sweep learning_rate=5e-3,1e-2,2e-2 --sweep c_fc_std=$SCALES --optimizer_type=muon

# 8c. Long, without repeats: 38.4M bytes of Python, of which no byte is read twice.
BYTES=python_packages_bytes
if [[ $WANTED == "  " || $WANTED == *" long_python_packages "* ]] && [ ! -f data/$BYTES/meta.json ]; then
    "$PYTHON" prepare_data.py python_packages --tokenizer=byte --name=$BYTES --max_tokens=60000000
fi
study long_python_packages --vary mlp=gelu,relu2,bio --seeds=3 --margin=0.01 --sweep learning_rate=1.5e-3,3e-3 --sweep c_fc_std=$SCALES \
    --tuning_seeds=1 --dataset=$BYTES --max_iters=50000 --warmup_iters=1000 --eval_interval=5000

# 8d. Larger, 6/6/384: rates at 5M tokens, then 20M at what larger_rates found. Take swiglu for relu2 where initial_scale
#     prefers it; where the arms' best rates differ, sweep those in `larger` too, with --tuning_seeds=1.
SIZE=(--vary mlp=gelu,relu2,bio --n_layer=6 --n_head=6 --n_embd=384 --block_size=256 --batch_size=16 --c_fc_std=unit)
study larger_rates "${SIZE[@]}" --seeds=1 --tuning_seeds=1 --sweep learning_rate=1e-3,2e-3 --max_iters=1220 --warmup_iters=120 --eval_interval=305
study larger "${SIZE[@]}" --seeds=2 --learning_rate=1e-3 --max_iters=4880 --warmup_iters=240 --eval_interval=610

# 9. Planned, not run: what does silence cost? Hard events at target rates from 0.5 to 0.04 beside arms that are free to fire.
RATE_ARMS=gelu,relu2,swiglu,bio+none,bio+feature+soft
for rate in 0.5 0.25 0.15 0.08 0.04; do RATE_ARMS+=,bio+feature+hard+$rate; done
EVENTS=(--vary "mlp+bio_gate+bio_event+bio_target_rate=$RATE_ARMS" --seeds=5 --margin=0.01 --finalists=3
    --sweep learning_rate=1.5e-3,3e-3,6e-3 --sweep c_fc_std=$SCALES)

# 9a. In the setting of initial_scale, whose runs of gelu, relu2, swiglu and bio without gate are taken over.
study event_rate "${EVENTS[@]}" --max_iters=1500 --warmup_iters=150 --eval_interval=375 --reuse=results/initial_scale/runs.jsonl

# 9b. At config_shakespeare_cpu.py: nanoGPT's corpus, learned positions, 2,000 steps.
study event_rate_nanogpt_cpu "${EVENTS[@]}" --dataset=shakespeare_char --position=learned --qk_norm=False --max_iters=2000 \
    --warmup_iters=100 --eval_interval=500 --reuse=results/nanogpt_cpu/runs.jsonl
