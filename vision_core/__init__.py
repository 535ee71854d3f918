"""What all packages share: options, run folders, checkpoints, files, processes, images and
scenes."""
