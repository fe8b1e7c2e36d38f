"What a start loads, what a core install can do, and what a long video costs"
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hff.footprint import bench_memory, command_peak, drifting, loop_video, peak_mb
from hff.paths import HffError
from hff.scores import write_scores
from hff.video import iter_video, write_video

ROOT = Path(__file__).parent.parent
PORTRAITS = ROOT/'tests/data/portraits'
HEAVY = {'torch', 'torchvision', 'timm', 'numpy', 'pandas', 'scipy', 'sklearn', 'cv2', 'av', 'PIL', 'matplotlib', 'seaborn', 'huggingface_hub', 'accelerate', 'captum'}
NOTEBOOKS = ('papermill', 'nbformat', 'nbclient', 'nbconvert', 'IPython', 'ipykernel', 'ipywidgets', 'jupyterlab', 'jupyter_client', 'jupyter_core', 'notebook', 'traitlets', 'nbdev', 'execnb', 'fastcore')


def child(code, *words, cwd='/'):
    r = subprocess.run([sys.executable, '-c', code, *map(str, words)], cwd=cwd, env=os.environ | dict(PYTHONPATH=str(ROOT), TQDM_DISABLE='1'), capture_output=True, text=True)
    assert r.returncode==0, r.stderr
    return r.stdout


def loaded(code): return HEAVY & set(json.loads(child(f'{code}\nimport json, sys; print(json.dumps([m.split(".")[0] for m in sys.modules]))').splitlines()[-1]))


def test_import_loads_nothing_heavy():
    assert loaded('import hff; dir(hff); hff.__version__')==set()
    assert loaded('import hff; hff.HffError')==set()
    assert 'torch' in loaded('import hff; hff.create_model')                              # the measure can tell


def test_help_loads_nothing_heavy():
    for words in (['--help'], ['predict', '--help'], ['data', '--help'], ['fly']):
        assert loaded(f'from hff.cli import main; main({words!r})')==set(), words


CORE = f"""
import sys
for m in {NOTEBOOKS!r}: sys.modules[m] = None                       # as if they were not installed
import importlib, pkgutil, hff
names = [m.name for m in pkgutil.walk_packages(hff.__path__, 'hff.') if not m.name.endswith('__main__')]
for n in names: importlib.import_module(n)
assert len(names)>50 and 'hff.reproduce' in names, names
from hff.cli import main
portraits, out, scores, faces = sys.argv[1:]
assert main(['predict', portraits, '--csv', out+'/t.csv', '--overlay', out+'/over'])==0
assert main(['evaluate', scores])==0
import os; os.environ['HFF_ROOT'] = out
from hff.recipe import Recipe
from hff.trainer import train
r = Recipe(model='rgb', backbone='mobilenetv2_100', pretrained=False, image_size=32, frames=1, epochs=1, batch_size=4)
assert (train(r, faces, out+'/runs')/'scores.parquet').is_file()
assert main(['share', out+'/runs/'+r.name, '--out', out+'/shared'])==0
assert main(['reproduce', '--preset', 'smoke'])==1
"""


def test_core_install(tmp_path):
    "Predict, evaluate, train and share without the notebook stack; reproduce says what it lacks"
    rng, rows = np.random.default_rng(0), []
    import cv2
    (tmp_path/'faces').mkdir()
    for split in ('train', 'val', 'test'):
        for m in ('real', 'F2F'):
            for p in range(4):
                cv2.imwrite(str(tmp_path/f'faces/{m}{split}{p}.png'), rng.integers(0, 256, (32, 32, 3), np.uint8))
                rows.append(dict(dataset='toy', method=m, quality='c23', video=f'{split}{p}', split=split, label=int(m!='real'), source='', target='', frame=0, crop=f'{m}{split}{p}.png',
                                 x0=0., y0=0., x1=32., y1=32., status='ok'))
    pd.DataFrame(rows).to_parquet(tmp_path/'faces/faces.parquet'); np.save(tmp_path/'faces/landmarks.npy', np.full((len(rows), 468, 2), 16, np.float32))
    s = pd.DataFrame(rows)[lambda d: d.split=='test'][['dataset', 'method', 'quality', 'video', 'frame', 'label']]
    write_scores(s.assign(score=rng.random(len(s)), logit=0., status='ok'), tmp_path/'s.parquet')
    r = subprocess.run([sys.executable, '-c', CORE, PORTRAITS, tmp_path, tmp_path/'s.parquet', tmp_path/'faces'], cwd='/', env=os.environ | dict(PYTHONPATH=str(ROOT), TQDM_DISABLE='1'),
                       capture_output=True, text=True)
    assert r.returncode==0, r.stderr[-3000:]
    assert "papermill, ipykernel, jupyter_core is not installed: pip install 'hff[repro]'" in r.stderr and 'Traceback' not in r.stderr


@pytest.fixture(scope='module')
def clip(tmp_path_factory): return write_video(tmp_path_factory.mktemp('clip')/'c.mp4', drifting(seconds=1))


def test_a_long_video_is_the_short_one_over_again(clip, tmp_path):
    long = loop_video(clip, tmp_path/'long.mp4', 4)
    a, b = [f.sum() for f in iter_video(clip)], [f.sum() for f in iter_video(long)]
    assert len(a)==25 and b==a*4
    with pytest.raises(HffError, match='at least once'): loop_video(clip, tmp_path/'x.mp4', 0)


def test_memory_does_not_grow_with_length():
    t = bench_memory(minutes=(1/3, 2), cases=((24, 'all'),), face=PORTRAITS/'female_14.jpg')
    assert t.scored.tolist()==[24, 24] and abs(t.peak_mb[1]-t.peak_mb[0])<60, t         # the frames of two minutes are 660 MB
    assert t.peak_mb.min()>100


GREEDY = """
import sys
from hff.footprint import peak_mb
from hff.video import read_video, sample_video
before = peak_mb(); (read_video if sys.argv[1]=='all' else lambda p: sample_video(p, 8))(sys.argv[2])
print(peak_mb()-before)
"""


def test_the_measure_can_fail(clip, tmp_path):
    "A reader that holds the whole clip shows up, one that holds a frame does not"
    long = loop_video(clip, tmp_path/'long.mp4', 40)                                       # 1000 frames, 220 MB
    assert float(child(GREEDY, 'all', long))>200 and float(child(GREEDY, 'some', long))<60
    assert peak_mb()>50


def test_a_failing_command_says_so(tmp_path):
    with pytest.raises(HffError, match='No picture, video or folder'): command_peak('predict', tmp_path/'none.mp4')
