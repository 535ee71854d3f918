"""Runs `pretrain/mae.py` on a disk of its own, so small that a checkpoint does not fit: DISK,
KILOBYTES and KILOBYTES_TAKEN come before its options.

The disk is a tmpfs in a mount namespace of this process, as root or in a user namespace; status 77
where the system allows neither.
"""

import ctypes
import os
import sys
from pathlib import Path

CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000

folder, kilobytes, taken = sys.argv[1:4]
libc = ctypes.CDLL(None, use_errno=True)
user = os.getuid()
if libc.unshare(CLONE_NEWNS | (CLONE_NEWUSER if user else 0)):
    sys.exit(77)
if user:
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {user} 1")
MS_REC, MS_PRIVATE = 0x4000, 0x40000
libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None)
if libc.mount(b"none", folder.encode(), b"tmpfs", 0, f"size={kilobytes}k".encode()):
    sys.exit(77)
Path(folder, "filler").write_bytes(bytes(1024 * int(taken)))

from pretrain import mae
from vision_core.errors import run_script

sys.argv = [mae.__file__, *sys.argv[4:]]
run_script(mae.main)
