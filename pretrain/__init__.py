"""DINOv2 self-distillation: an encoder from unlabelled images."""
