"""float16 with a loss scale: what stays float32, overflows that do not end a run, and resuming bit
for bit. All on the CPU."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from pretrain import dinov2
from pretrain.backbone import build_backbone
from pretrain.distillation_training import MAX_SKIPPED_IN_A_ROW
from pretrain.heads import ProjectionHead
from pretrain.run.loss_scale import LEAST_SCALE, LossScaler
from pretrain.self_distillation import SelfDistillation
from vision_core.errors import UserError

TINY = """
dataset: scenes?size=32&count=64
eval_dataset: none
global_crop_size: [32]
local_crop_size: [16]
num_local_crops: 1
hidden_size: 32
num_hidden_layers: 1
num_attention_heads: 2
num_prototypes: 32
head_hidden_dim: 32
head_bottleneck_dim: 16
per_device_train_batch_size: 8
dataloader_num_workers: 0
max_steps: 16
warmup_steps: 1
logging_steps: 1
save_steps: 5
save_total_limit: 10
num_cpu_threads: 1
bf16: false
fp16: true
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = tmp_path_factory.mktemp("config") / "tiny.yaml"
    config.write_text(TINY)

    def run_script(*arguments):
        dinov2.sys.argv = ["dinov2.py", "--config", str(config), *map(str, arguments)]
        dinov2.main()

    return run_script


@pytest.fixture(scope="module")
def whole(tmp_path_factory, run):
    folder = tmp_path_factory.mktemp("whole") / "run"
    run("--output_dir", folder)
    return folder


def metrics(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in line.items() if name not in ("images_per_second", "data_wait")}
        for line in lines
    ]


def state_of(folder, step):
    return json.loads((folder / f"checkpoint-{step}" / "training_state.json").read_text())


def test_losses_features_and_targets_stay_float32():
    """Under autocast to float16: what the docstring promises, and gradients of float32 weights."""
    torch.manual_seed(0)
    backbone = build_backbone(
        32, 2, 2, patch_size=8, image_size=32, num_channels=3, layerscale_value=1.0, initializer_range=0.08
    )
    method = SelfDistillation(backbone, ProjectionHead(32, 24, 32, 16), centering="sinkhorn_knopp")
    masks = torch.zeros(8, 16, dtype=torch.bool)
    masks[:, :4] = True
    batch = {
        "global_crops": torch.randn(8, 3, 32, 32),
        "local_crops": torch.randn(4, 3, 16, 16),
        "masks": masks,
        "mask_indices": masks.flatten().nonzero().squeeze(1),
        "mask_weights": torch.full((32,), 0.25),
    }
    exact = method(**batch, teacher_temp=0.04)
    seen = {}
    for name, module in backbone.named_modules():
        module.register_forward_hook(lambda module, args, output, name=name: seen.update({name: output}))
    with torch.autocast("cpu", torch.float16):
        losses = method(**batch, teacher_temp=0.04)
        targets, patches = method.teacher_targets(batch["global_crops"], batch["mask_indices"], 0.04)
    assert {value.dtype for value in (*losses.values(), targets, patches)} == {torch.float32}
    assert seen["encoder.layer.0.mlp.fc1"].dtype == torch.float16 and seen["layernorm"].dtype == torch.float32
    for name, value in losses.items():
        assert value.item() == pytest.approx(exact[name].item(), rel=5e-3), name
    losses["loss"].backward()
    assert all(
        parameter.grad.dtype == torch.float32
        for parameter in method.student.parameters()
        if parameter.grad is not None
    )


def test_more_overflows_in_a_row_than_may_be_skipped_lower_the_scale_and_training_goes_on(whole):
    """At the start a head divides by norms of 0.002, so its gradients times 65536 do not fit into
    float16: ten steps in a row."""
    lines = metrics(whole)
    skipped = [line for line in lines if line.get("skipped")]
    assert len(skipped) > MAX_SKIPPED_IN_A_ROW
    assert [line["loss_scale"] for line in skipped] == [
        65536 / 2**number for number in range(1, len(skipped) + 1)
    ]
    taken = [line for line in lines if "dino_global_loss" in line]
    assert [line["step"] for line in skipped + taken] == list(range(1, 17)) and len(taken) > 2
    assert all(torch.isfinite(tensor).all() for tensor in load_file(whole / "model.safetensors").values())
    scaler = state_of(whole, 16)["loss_scaler"]
    assert scaler["scale"] == skipped[-1]["loss_scale"] and scaler["_growth_tracker"] == len(taken)


def test_resumed_is_uninterrupted_bit_for_bit(run, whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    for step in (10, 15, 16):
        shutil.rmtree(folder / f"checkpoint-{step}")
    run("--output_dir", folder, "--resume_from_checkpoint", "true")
    assert (folder / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert (
        metrics(folder) == metrics(whole)
        and state_of(folder, 16)["loss_scaler"] == state_of(whole, 16)["loss_scaler"]
    )


def test_a_checkpoint_without_a_scale_loads():
    """Of a run in another precision, or from before there was one."""
    scaler = LossScaler("cpu")
    scaler.load(None)
    scaler.load({})
    assert scaler.get_scale() == 65536
    scaler.load(LossScaler("cpu", init_scale=8.0).state_dict())
    assert scaler.get_scale() == 8


def test_gradients_that_no_scale_cures_end_the_run(run, tmp_path, monkeypatch):
    """The scale falls from 65536 to 1 in 16 steps, and then the rule for gradients that are not
    finite holds."""
    plain = SelfDistillation.forward

    def steep(self, *args, **kwargs):
        losses = plain(self, *args, **kwargs)
        bias = self.student["dino_head"].mlp[0].bias
        return losses | {
            "loss": losses["loss"] + (bias - bias.detach()).abs().sqrt().sum()
        }  # finite, its gradient is not

    monkeypatch.setattr(SelfDistillation, "forward", steep)
    with pytest.raises(UserError, match="not finite for 3 steps in a row, the last is step 19"):
        run("--output_dir", tmp_path / "run", "--max_steps", 40)
    lines = [line for line in metrics(tmp_path / "run") if line.get("skipped")]
    assert lines[15]["loss_scale"] == LEAST_SCALE and "ids" in lines[16]
    weights = load_file(tmp_path / "run" / "checkpoint-15" / "student.safetensors").values()
    assert all(torch.isfinite(tensor).all() for tensor in weights)


def test_the_unscaled_gradients_are_those_of_float32():
    torch.manual_seed(0)
    layer, rows = torch.nn.Linear(8, 4), torch.randn(16, 8)
    optimizer = torch.optim.AdamW(layer.parameters(), foreach=True)
    (1e-4 * layer(rows).square().mean()).backward()
    exact = layer.weight.grad.clone()
    optimizer.zero_grad()
    scaler = LossScaler("cpu")
    with torch.autocast("cpu", torch.float16):
        loss = 1e-4 * layer(rows).float().square().mean()
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    torch.testing.assert_close(layer.weight.grad, exact, rtol=1e-2, atol=1e-8)
