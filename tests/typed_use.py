"A program of somebody who checks types: read by mypy with every check on, never run"
from pathlib import Path
from typing import assert_type

import numpy as np
import pandas as pd
from torch import Tensor, nn

import hff
from hff.calibration import calibrate, fit_calibration
from hff.checkpoints import Report, inspect_checkpoint
from hff.clips import read_picture
from hff.filters import srm_residual
from hff.metrics import evaluate, rank_auc, video_auc
from hff.models import Output
from hff.paths import sha256
from hff.recipe import Recipe, make_recipe
from hff.scores import read_scores
from hff.sharing import Detector, share
from hff.trainer import train

network = hff.create_model('two_stream', backbone='tf_efficientnet_lite0', pretrained=False, image_size=128, head='cosine')
assert_type(network, nn.Module)
assert_type(hff.load_checkpoint('m.safetensors', fusion_residual=True), nn.Module)
assert_type(hff.save_checkpoint(network, Path('m.safetensors'), trained_on=None), Path)
assert_type(hff.predict('clip.mp4', frames=8, faces='all', margin=None), pd.DataFrame)
assert_type(inspect_checkpoint('m.safetensors'), Report)
detector = hff.Detector.from_pretrained('me/detector', revision='main')
assert_type(detector, Detector)
assert_type(detector.predict(Path('clip.mp4')), pd.DataFrame)
assert_type(share('run', out='folder'), str)
assert_type(make_recipe(seed=1), Recipe)
assert_type(train(make_recipe(), 'faces', Path('runs')), Path)
scores = read_scores('scores.parquet')
assert_type(evaluate(scores, methods=None, pool='median'), pd.DataFrame)
assert_type(video_auc(scores), float)
assert_type(rank_auc([0, 1], np.array([.1, .9])), float)
assert_type(calibrate(scores, fit_calibration(scores)), pd.DataFrame)
assert_type(sha256('file'), str)


def look(image: Tensor) -> Tensor | None:
    out: Output = network(image)
    residual: Tensor = srm_residual(image)
    return None if residual.isnan().any() else out.attention_map


try: read_picture('x.jpg').mean()
except hff.HffError as e: print(e)

hff.predict(7)                                                  # type: ignore[arg-type]
hff.create_model('rgb', image_size='large')                     # type: ignore[arg-type]
hff.save_checkpoint(network)                                    # type: ignore[call-arg]
hff.Detector.from_run()                                         # type: ignore[call-arg]
