#!/usr/bin/env bash
# The whole pipeline from scratch on synthetic scenes, both encoders included; it ends with a report.
# It needs neither network nor data: it pretrains two encoders, fuses them in five ways, aligns, fine-tunes and judges
# the fused models, and writes a page about them.
#
#   bash recipes/everything_on_scenes.sh [FOLDER]        default outputs/everything; the page is FOLDER/report/README.md
#
# PYTHON   the interpreter of the environment (default python)
# SEEDS    of the fused models (default "0 1 2")
# STEPS    of their fine-tuning (default 600)
#
# Two programs run at a time, with one core each. After an interruption give the same command again: what is finished
# is not made again, and what was begun goes on where it was.
set -euo pipefail
recipes=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if ! python=$(command -v "${PYTHON:-python}"); then
  echo "error: there is no ${PYTHON:-python}; name the environment's interpreter: PYTHON=.venv/bin/python" >&2
  exit 2
fi
python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python")
out=$(mkdir -p "${1:-outputs/everything}" && cd "${1:-outputs/everything}" && pwd)
seeds=${SEEDS:-0 1 2} steps=${STEPS:-600}
if [ -e "$out/steps" ] && [ "$(cat "$out/steps")" != "$steps" ]; then
  before=$(cat "$out/steps")
  echo "error: models in $out have $before steps; go on with STEPS=$before, or name another folder" >&2
  exit 2
fi
echo "$steps" > "$out/steps"
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 python recipes out steps

# make FOLDER SCRIPT OPTION...: run the script with a folder of its own, which gets its name once all is in it
make() {
  local folder=$1 started=$SECONDS part
  shift
  if [ -e "$folder" ]; then return; fi
  mkdir -p "$(dirname "$folder")"
  part=$folder.unfinished
  if ! "$python" "$@" --output_dir "$part" --resume_from_checkpoint auto >> "$folder.log" 2>&1; then
    tail -n 3 "$folder.log" >&2
    echo "error: ${folder#"$out"/} failed; all that it said is in $folder.log" >&2
    return 1
  fi
  mv "$part" "$folder"
  printf '%s %5d s  %s\n' "$(date +%H:%M:%S)" $((SECONDS - started)) "${folder#"$out"/}"
}

# train_and_judge VARIANT SEED: a fused model from its first weights to its answers
train_and_judge() {
  local at=$out/$1-$2 fused=(--seed "$2")
  local sva=(--connector sva --connector_width 128 --connector_heads 4 --connector_depth 2)
  local training=(--seed "$2" --eval_conversations "[]" --feature_cache "$out/features" --logging_steps 20)
  case $1 in
    dinov2 | siglip) fused+=(--encoders "$out/$1" --connector mlp) ;;
    channel_concat) fused+=(--encoders "$out/dinov2" "$out/siglip" --connector channel_concat) ;;
    sva_connector) fused+=(--encoders "$out/dinov2" "$out/siglip" "${sva[@]}") ;;
    sva) fused+=(--encoders "$out/dinov2" "$out/siglip" "${sva[@]}" --num_sva_layers 2 --sva_stride 2) ;;
  esac
  make "$at/fused" -m fusion.fuse "${fused[@]}" --language_model "$out/language_model"
  make "$at/align" "$recipes/sva_align.py" --init_from "$at/fused" \
    --conversations "scenes?count=1000&turns=all" "${training[@]}"
  # the language model starts from scratch, so it learns at a higher rate than a published one
  make "$at/sft" "$recipes/sva_sft.py" --init_from "$at/align" --learning_rate 1e-3 \
    --conversations "scenes?count=$((8 * steps))&turns=all" "${training[@]}"
  make "$at/judged" "$recipes/evaluate_vlm.py" --model "$at/sft"
}
export -f make train_and_judge

cd "$recipes/.."
echo "$(date +%H:%M:%S)          everything goes into $out"
make "$out/siglip" pretrain/siglip.py --max_steps 800 --eval_dataset none & siglip=$!
make "$out/dinov2" pretrain/dinov2.py --num_cpu_threads 1 --max_steps 800 --eval_steps 400 & dinov2=$!
wait $siglip
wait $dinov2
make "$out/language_model" recipes/small_language_model.py
for seed in $seeds; do
  for variant in dinov2 siglip channel_concat sva_connector sva; do printf '%s %s\n' "$variant" "$seed"; done
done | xargs -P 2 -L 1 bash -Eeuc 'trap "exit 255" ERR; train_and_judge "$@"' -  # at 255 xargs starts nothing more
rm -rf "$out/report"  # of fewer seeds, maybe
make "$out/report" recipes/scenes_report.py --models "$out"
echo "$(date +%H:%M:%S)          the page: $out/report/README.md"
