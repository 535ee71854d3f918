"""`recipes/sva_sft.py` whose loss takes 8 learnt positions at a time, as 1,024 would need long
texts; at its end it says what ZeRO was."""

from functools import partial

import fusion.modeling_fusion_vlm as modeling
from fusion.supervised_loss import supervised_loss
from fusion.training.trainer import VlmTrainer
from recipes import sva_sft
from vision_core.errors import run_script

modeling.supervised_loss = partial(supervised_loss, chunk=8)


class ReportingTrainer(VlmTrainer):
    """Says what DeepSpeed's engine itself goes by."""

    def train(self, *args, **kwargs):
        super().train(*args, **kwargs)
        engine = self.deepspeed
        if engine is not None and self.is_world_process_zero():
            weights = list(engine.module.parameters())
            numbers = sum(getattr(weight, "ds_numel", weight.numel()) for weight in weights)
            figures = {
                "stage": engine.zero_optimization_stage(),
                "clipping": engine.gradient_clipping(),
                "bf16": engine.bfloat16_enabled(),
                "accumulation": engine.gradient_accumulation_steps(),
                "micro batch": engine.train_micro_batch_size_per_gpu(),
                "optimizer": type(engine.basic_optimizer).__name__,
                "processes": engine.dp_world_size,
                "own share": sum(getattr(weight, "ds_tensor", weight).numel() for weight in weights)
                / numbers,
                "held between steps": sum(weight.numel() for weight in weights) / numbers,
            }
            print("engine:", figures)


if __name__ == "__main__":
    from fusion.training import stage

    stage.VlmTrainer = ReportingTrainer
    run_script(sva_sft.main)
