"""A command of upl-reid in this process, and pictures to give it."""
import json

import numpy as np
from PIL import Image

from upl_reid.cli import main


def picture(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (48, 24, 3), np.uint8)).save(path)
    return path


def said(capsys, *arguments):
    "Exit code, the facts, and standard error."
    code = main([*map(str, arguments), "--json"])
    out = capsys.readouterr()
    assert "Traceback" not in out.err
    return code, json.loads(out.out) if out.out else None, out.err
