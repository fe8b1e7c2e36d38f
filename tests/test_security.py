"What a file from a stranger must not do: run something, write somewhere else, or take the memory"
import ast
import json
import pickle
import resource
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import dfb_tree
import hff
import trees
from hff.checkpoints import load_checkpoint, save_checkpoint
from hff.clips import lmdb_names, read_picture, sample
from hff.datasets import FaceDataset, read_crop
from hff.deepfakebench import read_landmarks, rows_deepfakebench
from hff.extract import clip_key, clip_path, extract_faces, read_faces
from hff.inference import cropping_of, predict
from hff.manifest import check_faces, check_manifest, read_array, read_manifest
from hff.models import create_model
from hff.overlays import overlay_names, write_overlays
from hff.paths import HffError
from hff.readers import read_source
from hff.recipe import load_preset
from hff.report import draw_samples
from hff.reproduce import _adopt, _adopt_files, pack_samples
from hff.results import read_results, write_results
from hff.trainer import load_state
from hff.verify import check_clip
from hff.video import LIMITS, BadVideo, probe_video, read_video, sample_video, write_video
from strategies import parquet
from test_extract import manifest
from test_fuzz import FACES, PACKED

HERE = Path(hff.__file__).parent


class Evil:
    "Makes the file `executed` when it is unpickled"
    def __init__(self, folder): self.path = str(folder/'executed')
    def __reduce__(self): return open, (self.path, 'w')


# ---- nothing is run

@pytest.mark.parametrize('name', ['w.pth', 'w.pt', 'w.safetensors', 'w.bin', 'w.ckpt'])
@pytest.mark.parametrize('kind', ['pickle', 'zip', 'legacy', 'hidden'])
def test_a_pickle_is_not_run_whatever_it_is_called(name, kind, tmp_path):
    p, evil = tmp_path/name, Evil(tmp_path)
    if kind=='pickle': p.write_bytes(pickle.dumps(evil))
    elif kind=='hidden': p.write_bytes(b'\x08\0\0\0\0\0\0\0{'+pickle.dumps(evil))              # begins as safetensors do
    else: torch.save(dict(state_dict=dict(a=torch.zeros(1), b=evil)), p, _use_new_zipfile_serialization=kind=='zip')
    for read in (load_checkpoint, load_state):
        with pytest.raises(HffError): read(p)
    with pytest.raises(HffError): create_model('rgb', backbone='mobilenetv2_100', pretrained=str(p), image_size=32)
    assert not (tmp_path/'executed').exists()


def test_the_evil_file_would_work(tmp_path):
    (tmp_path/'w.pth').write_bytes(pickle.dumps(Evil(tmp_path)))
    with open(tmp_path/'w.pth', 'rb') as f: pickle.load(f).close()
    assert (tmp_path/'executed').exists()


def test_arrays_of_objects_are_refused(tmp_path):
    "As landmarks, masks and whatever else lies among the crops"
    objects = np.array([Evil(tmp_path)], dtype=object)
    for name in ('landmarks', 'masks', 'masks_known'):
        np.save(tmp_path/f'{name}.npy', objects, allow_pickle=True)
        with pytest.raises(HffError, match='no readable array'): read_array(tmp_path/f'{name}.npy')
    with pytest.raises(HffError): read_landmarks(tmp_path/'landmarks.npy')
    FACES.to_parquet(tmp_path/'faces.parquet')
    for m in ('real', 'F2F'): (tmp_path/f'{m}.png').write_bytes(dfb_tree.png(3, 32))
    with pytest.raises(HffError, match='landmarks.npy'): FaceDataset(FACES, tmp_path, blank_face=True)
    assert not (tmp_path/'executed').exists()


@pytest.mark.parametrize('text', ['!!python/object/apply:builtins.open [{x}, w]', 'recipe: !!python/object/new:os.system [touch {x}]', 'recipe: !!python/name:os.system', '!!python/module:antigravity', 'a: &a [x]\nrecipe: {{b: *a}}'])
def test_yaml_is_plain_data(text, tmp_path):
    (p := tmp_path/'p.yaml').write_text(text.format(x=tmp_path/'executed'))
    with pytest.raises(HffError): load_preset(p)
    assert not (tmp_path/'executed').exists()


def test_a_checkpoint_does_not_choose_what_is_imported(tmp_path, monkeypatch):
    "Its header names the detector that its faces were cut out with; only the caller may name code outside hff"
    (tmp_path/'evil.py').write_text(f"open({str(tmp_path/'executed')!r}, 'w').close()\ndef find(image): return []\n")
    monkeypatch.syspath_prepend(tmp_path)
    net = create_model('rgb', backbone='mobilenetv2_100', pretrained=False, image_size=64)
    for k in ('detector', 'landmarks'):
        save_checkpoint(net, tmp_path/'w.safetensors', cropping={k: 'evil:find'})
        with pytest.raises(HffError, match='give '+k): cropping_of(load_checkpoint(tmp_path/'w.safetensors'))
    with pytest.raises(HffError): predict(trees.PORTRAITS/'male_20.jpg', tmp_path/'w.safetensors')
    assert not (tmp_path/'executed').exists() and 'evil' not in sys.modules
    save_checkpoint(net, tmp_path/'w.safetensors', cropping=dict(detector='evil:find'))
    assert cropping_of(load_checkpoint(tmp_path/'w.safetensors'), detector='evil:find')[0].detector=='evil:find' and (tmp_path/'executed').exists()


def test_a_backbone_from_the_net_is_no_backbone(tmp_path):
    for name in ('hf-hub:someone/else', 'hf_hub:someone/else', 'local-dir:/tmp'):
        save_file(dict(a=torch.zeros(1)), tmp_path/'w.safetensors', dict(hff=json.dumps(dict(config=dict(name='rgb', backbone=name, image_size=64)))))
        with pytest.raises(HffError, match='unknown backbone'): load_checkpoint(tmp_path/'w.safetensors')


# ---- by source

BANNED = {'pickle.load', 'pickle.loads', 'yaml.load', 'yaml.full_load', 'yaml.unsafe_load', 'os.system', 'os.popen', 'subprocess.getoutput', 'urllib.request.urlopen', 'urlopen', 'urlretrieve', 'requests.get', 'eval', 'exec',
          'compile', 'joblib.load', 'pd.read_pickle', 'shutil.unpack_archive', 'cloudpickle.load', 'dill.load', 'marshal.loads'}

def faults(source):
    "Calls that could run or unpack what a file holds"
    for n in ast.walk(ast.parse(source)):
        if isinstance(n, ast.Constant) and isinstance(n.value, str) and n.value.startswith('http://') and 'localhost' not in n.value and 'w3.org' not in n.value: yield 'http', n.lineno
        if not isinstance(n, ast.Call): continue
        name, kw = ast.unparse(n.func), {k.arg: ast.unparse(k.value) for k in n.keywords}
        if name in BANNED or name.rpartition('.')[2] in ('extractall', 'read_pickle', 'unpack_archive'): yield name, n.lineno
        if name.endswith('torch.load') and kw.get('weights_only')!='True': yield name, n.lineno
        if name.endswith('np.load') and kw.get('allow_pickle', 'False')!='False': yield name, n.lineno
        if kw.get('shell') not in (None, 'False') or 'trust_remote_code' in kw: yield name, n.lineno


def test_no_source_runs_what_it_reads():
    assert {p.name: f for p in sorted(HERE.rglob('*.py')) if (f := list(faults(p.read_text(encoding='utf-8'))))}=={}


@pytest.mark.parametrize('line', ['torch.load(p)', 'torch.load(p, weights_only=False)', 'np.load(p, allow_pickle=True)', 'np.load(p, allow_pickle=x)', 'yaml.load(t)', 'eval(t)', 'os.system(c)', 'subprocess.run(c, shell=True)', 'z.extractall(d)', 'x = "http://a.b/c"'])
def test_the_search_finds_each_of_them(line): assert list(faults(line))


def test_processes_are_started_with_lists():
    "No first argument is text"
    for p in HERE.rglob('*.py'):
        for n in ast.walk(ast.parse(p.read_text(encoding='utf-8'))):
            if isinstance(n, ast.Call) and ast.unparse(n.func).startswith('subprocess.') and n.args: assert not isinstance(n.args[0], (ast.Constant, ast.JoinedStr, ast.BinOp)), f'{p.name}:{n.lineno}'


# ---- nothing is written, or read, elsewhere

OUTSIDE = ['../x', '../../x', '/etc/x', 'a/../../x', 'a/./x', '..', 'C:\\x', '\\\\server\\x', '..\\x']

@pytest.mark.parametrize('text', OUTSIDE)
def test_a_manifest_leads_nowhere_else(text, tmp_path):
    good = manifest(['a.mp4'])
    for column in ('dataset', 'method', 'quality', 'video', 'source', 'target', *(['path'] if '/./' not in text else [])):
        with pytest.raises(HffError): check_manifest(good.assign(**{column: text}))
    row = dict(dataset='a', method='DF', quality='', video=text, path=text, base='')
    if '\\' not in text:
        with pytest.raises(HffError): clip_key(row)
        if '/./' not in text:
            with pytest.raises(HffError, match='leads out'): clip_path(row, {'': tmp_path})


def test_a_mark_in_the_file_does_not_open_a_door(tmp_path):
    "A table may say of itself that it was checked; its paths are looked at again before they are used"
    m = manifest(['a.mp4']).assign(path='../secret.mp4', video='../../x')
    (tmp_path/'m.parquet').write_bytes(parquet(m, {b'hff': b'checked manifest'}))
    (tmp_path/'data').mkdir(); (tmp_path/'secret.mp4').write_bytes(trees.real(0))
    with pytest.raises(HffError, match='lead'): extract_faces(read_manifest(tmp_path/'m.parquet'), tmp_path/'data', tmp_path/'faces', frames=1, size=64, jobs=1)
    assert not (tmp_path/'faces/faces.parquet').exists() and not (tmp_path/'x').exists()


def test_given_landmarks_and_listed_frames_are_the_data_sets_own(tmp_path):
    (tmp_path/'data/clip').mkdir(parents=True); (tmp_path/'data/landmarks').mkdir()
    for p in ('secret.001.png', 'data/clip/001.png'): (tmp_path/p).write_bytes((trees.PORTRAITS/'male_20.jpg').read_bytes())
    np.savez(tmp_path/'secret.npz', landmarks=np.zeros((9, 468, 2)))
    m = manifest(['clip'])
    with pytest.raises(HffError, match='a target that would lead out'): extract_faces(m.assign(target='../../secret'), tmp_path/'data', tmp_path/'faces', frames=1, size=64, jobs=1)
    for i, name in enumerate(('../../secret.001.png', str(tmp_path/'secret.001.png'))):
        t = read_faces(extract_faces(m.assign(frames=name), tmp_path/'data', tmp_path/f'faces{i}', frames=1, size=64, jobs=1))
        assert t.status.tolist()==['error'] and 'leads out' in t.reason[0]


def test_crops_are_read_from_their_folder_only(tmp_path):
    for crop in ('../real.png', '/etc/passwd', 'a/../../x.png'):
        with pytest.raises(HffError, match='leads out'): check_faces(FACES.assign(crop=crop))
    for column in ('dataset', 'method', 'quality', 'video', 'target'):
        for text in ('/../../../../tmp/x', 'a/../../x', '..', '/x', 'C:x', 'a\\b', 'a\0b'):
            with pytest.raises(HffError, match=f'the {column} .*leads out'): check_faces(FACES.assign(**{column: text}))
    check_faces(FACES.assign(video='a/b..c/d'))
    FACES.assign(crop='../x.png').to_parquet(tmp_path/'faces.parquet')
    with pytest.raises(HffError, match='leads out'): read_faces(tmp_path)


@pytest.mark.parametrize('name,file,text', [('celebdf_v2', 'List_of_testing_videos.txt', '1 ../Celeb-real/id0_0000.mp4'), ('celebdf_v2', 'List_of_testing_videos.txt', '1 /Celeb-real/id0_0000.mp4'),
                                            ('dfdcp', 'dataset.json', '{"original_videos/../../x.mp4": {"label": "real", "set": "train"}}'), ('dfdc', 'train/dfdc_train_part_0/metadata.json', '{"../../x.mp4": {"label": "REAL"}}'),
                                            ('df1', 'lists/splits/train.txt', '../../000_M101.mp4')])
def test_lists_lead_nowhere_else(name, file, text, tmp_path):
    t = trees.make_tree(name, tmp_path)
    next(q for q in t['root'].rglob(Path(file).name) if q.as_posix().endswith(file)).write_text(text)
    with pytest.raises(HffError, match='leads out'): read_source(name, t['root'], **t['options'])


def test_deepfakebench_lists_lead_nowhere_else(tmp_path):
    (tmp_path/'rgb/UADFV').mkdir(parents=True)
    for frame, video in (('../../UADFV/real/frames/a/1.png', 'a'), ('/UADFV/../../real/frames/a/1.png', 'a'), ('UADFV/real/frames/a/1.png', '..'), ('UADFV/real/frames/a/1.png', '.')):
        (tmp_path/'a.json').write_text(json.dumps({'UADFV': {'UADFV_Real': {'test': {video: dict(label='UADFV_Real', frames=[frame])}}}}))
        with pytest.raises(HffError): list(rows_deepfakebench(tmp_path/'rgb', json=tmp_path/'a.json'))


def test_keys_of_an_lmdb_name_nothing_outside(tmp_path):
    import lmdb
    (d := tmp_path/'X_lmdb').mkdir()
    with lmdb.open(str(d), map_size=1<<20) as env, env.begin(write=True) as t:
        for k in (b'X\\a\\b\\..\\..\\..\\c.png', b'X\\a\\b\\/etc/passwd7.png', b'X\\a\\b\\001.png', b'X\\a\\b\\\xff2.png'): t.put(k, dfb_tree.png(3))
    before = set(tmp_path.rglob('*'))
    numbers, found = sample(d/'a/b', 8)
    assert len(lmdb_names(d, 'a/b'))==4 and all(isinstance(f, (np.ndarray, HffError)) for f in found) and {i for i in set(tmp_path.rglob('*'))-before if 'lock' not in i.name}==set()


SAMPLE = dict(dataset='toy', quality='c23', method='real', person='1')

def test_names_in_a_packed_folder_write_nothing_outside(tmp_path):
    "`samples` of facts.json is shown, never joined to a path that is written"
    trees.put(tmp_path/'in', PACKED | {'facts.json': json.dumps(dict(preset='smoke', samples=[SAMPLE | dict(file='../../evil.png')]))})
    r = read_results(tmp_path/'in')
    write_results(r, tmp_path/'out/deep')
    assert sorted(p.name for p in tmp_path.rglob('*') if p.is_file() and 'in' not in p.parent.name)==sorted(PACKED)


def test_a_packed_folder_shows_nothing_from_outside(tmp_path):
    "Neither by a name nor by a link, where it lies as little as elsewhere"
    scores = tmp_path/'in/scores'
    trees.put(tmp_path, {'secret.png': dfb_tree.png(3), 'in/scores/samples/good.png': dfb_tree.png(3), 'in/scores/samples/wall.png': bomb(20_000, 20_000, 100_000)})
    (scores/'samples/link.png').symlink_to(tmp_path/'secret.png'); (scores/'samples/loop.png').symlink_to('loop.png')
    sample = lambda file: [SAMPLE | dict(file=file)]
    assert len(draw_samples(scores, dict(samples=sample('samples/good.png'))).axes)==1
    with pytest.raises(HffError, match='pixels|bomb'): draw_samples(scores, dict(samples=sample('samples/wall.png')))
    for file in ('../../secret.png', str(tmp_path/'secret.png'), 'samples/link.png', 'samples/loop.png', 'a\0b'):
        with pytest.raises(HffError, match='outside|no name|No picture'): draw_samples(scores, dict(samples=sample(file)))
    facts = dict(preset='smoke', seeds=[0], tables=[], data=[], machine={})
    for file in ('../../secret.png', str(tmp_path/'secret.png'), 'samples/link.png'):
        trees.put(scores, PACKED | {'facts.json': json.dumps(facts | dict(samples=sample(file)))})
        for out in ('in', 'out'):
            with pytest.raises(HffError, match='lies outside'): _adopt(scores, tmp_path/out)
    assert not (tmp_path/'out').exists()


@pytest.mark.parametrize('name', ['robustness.png', 'robustness_b.csv', 'robustness_a.md'])
def test_pictures_beside_packed_scores_are_no_links_to_elsewhere(name, tmp_path):
    trees.put(tmp_path, {'secret': 'a,b\n1,2\n', 'in/robustness_a.csv': 'a,b\n1,2\n'})
    assert _adopt_files(Path('robustness.ipynb'), tmp_path/'in', tmp_path/'good') and [p.name for p in (tmp_path/'good').iterdir()]==['robustness_a.csv']
    (tmp_path/'in'/name).symlink_to(tmp_path/'secret')
    for out in ('in', 'out'):
        with pytest.raises(HffError, match='lies outside'): _adopt_files(Path('robustness.ipynb'), tmp_path/'in', tmp_path/out)
    assert not (tmp_path/'out').exists()


def test_names_of_people_are_no_folders(tmp_path):
    trees.put(tmp_path/'faces', {f'{m}.png': dfb_tree.png(3, 32) for m in ('real', 'F2F')})
    FACES.assign(target='../../../x').to_parquet(tmp_path/'faces/faces.parquet')
    with pytest.raises(HffError, match='leads out'): pack_samples({'': tmp_path/'faces'}, tmp_path/'out/scores')
    assert not (tmp_path/'out').exists()
    FACES.assign(target='deep/x').to_parquet(tmp_path/'faces/faces.parquet')
    packed = pack_samples({'': tmp_path/'faces'}, tmp_path/'out/scores')
    assert sorted(p.relative_to(tmp_path/'out/scores').as_posix() for p in tmp_path.rglob('*x.png'))==sorted(r['file'] for r in packed)
    assert len(packed)==2 and all(r['file'].count('/')==1 for r in packed)


def test_overlays_stay_in_their_folder(tmp_path):
    table = pd.DataFrame([dict(file=f, frame=0, time=np.nan, face=0, x0=0., y0=0., x1=9., y1=9., angle=0., score=.5, logit=0., status='ok', reason='', duration=np.nan) for f in ('../../x.png', '/tmp/x.png')])
    (tmp_path/'in').mkdir(); (tmp_path/'in/a.png').write_bytes(dfb_tree.png(3, 32))
    t = write_overlays(table, tmp_path/'in', tmp_path/'out/deep', heat='none')
    assert t.overlay.eq('').all() and not [p for p in tmp_path.rglob('*x*.png')]


@pytest.mark.parametrize('name', ['-i', '--help', '-y -i x', "a'b", 'a"b', 'a\nb', '$(touch x)', ';touch x', 'concat:a|b', 'http:x', 'a%d', '%s', 'pipe:0', 'file:a', ' '])
def test_odd_names_are_names(name, tmp_path, monkeypatch):
    "Neither options nor commands nor protocols, also relative to the current folder"
    monkeypatch.chdir(tmp_path)
    write_video('plain.mp4', np.zeros((3, 32, 32, 3), np.uint8))
    p = Path(f'{name}.mp4'); p.write_bytes(Path('plain.mp4').read_bytes())
    assert read_video(p).shape==(3, 32, 32, 3) and probe_video(p)['packets']==3 and check_clip(p, deep=True)['status']=='have'
    assert read_video(write_video(Path(f'{name} again.mp4'), np.zeros((2, 32, 32, 3), np.uint8))).shape[0]==2
    assert sorted(q.name for q in tmp_path.iterdir())==sorted({'plain.mp4', p.name, f'{name} again.mp4'})
    assert all(v and not v.startswith('/') for v in overlay_names([p.name]).values())


def test_play_lists_open_nothing(tmp_path):
    (tmp_path/'secret.mp4').write_bytes(trees.real(0))
    texts = {'a.mp4': 'ffconcat version 1.0\nfile secret.mp4\n', 'b.m3u8': f'#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{tmp_path}/secret.mp4\n#EXT-X-ENDLIST\n', 'c.mp4': '#EXTM3U\nhttp://127.0.0.1:9/x\n'}
    for name, text in texts.items():
        (tmp_path/name).write_text(text)
        with pytest.raises(BadVideo): read_video(tmp_path/name)
    with av.open(str(tmp_path/'a.mp4')) as c: assert c.format.name=='concat'          # FFmpeg alone would have read the other file


# ---- bounded memory

def chunk(kind, data): return struct.pack('>I', len(data))+kind+data+struct.pack('>I', zlib.crc32(kind+data))

def bomb(w, h, filled=0): return b'\x89PNG\r\n\x1a\n'+chunk(b'IHDR', struct.pack('>IIBBBBB', w, h, 8, 2, 0, 0, 0))+chunk(b'IDAT', zlib.compress(bytes(filled), 9))+chunk(b'IEND', b'')


@pytest.mark.parametrize('side', [9_500, 12_000, 20_000, 60_000])
def test_a_picture_that_claims_to_be_a_wall(side, tmp_path):
    for name in ('a.png', 'a.jpg'):
        (tmp_path/name).write_bytes(bomb(side, side, 100_000))
        for read in (read_picture, read_crop):
            with pytest.raises(HffError, match='pixels|bomb'): read(tmp_path/name)
    with pytest.raises(HffError): read_picture(bomb(side, side))
    assert check_clip(tmp_path/'a.png')['status']=='unreadable'


def test_other_programs_are_not_started_for_a_picture(tmp_path):
    (tmp_path/'a.png').write_bytes(b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n')
    with Image.open(tmp_path/'a.png') as im: assert im.format=='EPS'                  # Pillow would call Ghostscript
    with pytest.raises(HffError, match='no readable picture'): read_picture(tmp_path/'a.png')


def lies(clip, **claims):
    "The clip with other counts and sizes in its header"
    b = bytearray(clip)
    at = lambda kind: b.find(kind)
    for k, v in claims.items():
        if k=='samples': b[at(b'stsz')+8:at(b'stsz')+16] = struct.pack('>II', 10, v)
        if k=='times': b[at(b'stts')+12:at(b'stts')+16] = struct.pack('>I', v)
        if k=='chunk': b[at(b'stsc')+16:at(b'stsc')+20] = struct.pack('>I', v)
        if k=='seconds': b[at(b'mdhd')+16:at(b'mdhd')+24] = struct.pack('>II', 1, v)          # one tick a second
        if k=='seconds': b[at(b'stts')+16:at(b'stts')+20] = struct.pack('>I', v//4); b[at(b'edts'):at(b'edts')+4] = b'free'
        if k=='packed': b[at(b'udta'):at(b'udta')+4] = b'cmov'
    return bytes(b)


@pytest.fixture(scope='module')
def clip(tmp_path_factory): return write_video(tmp_path_factory.mktemp('clip')/'a.mp4', np.random.default_rng(0).integers(0, 255, (4, 32, 32, 3), np.uint8)).read_bytes()


@pytest.mark.parametrize('claims', [dict(samples=10**9), dict(samples=10**9, times=10**9, chunk=10**9), dict(samples=2*10**7, times=2*10**7, chunk=2*10**7), dict(times=2**32-1), dict(packed=1)])
def test_a_header_that_claims_a_billion_frames(claims, clip, tmp_path):
    "Four kilobytes; FFmpeg alone would make an index of as many entries"
    (p := tmp_path/'a.mp4').write_bytes(lies(clip, **claims))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for read in (read_video, probe_video, lambda p: sample_video(p, 3)):
        with pytest.raises(BadVideo) as e: read(p)
        assert e.value.reason=='too large' and 'LIMITS.frames' in str(e.value)
    assert check_clip(p)==check_clip(p) | dict(status='unreadable', reason='too large')
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss-before<200_000          # KB


def test_a_table_hidden_in_another_box_counts(clip, tmp_path):
    "FFmpeg looks into some; so whatever is not among the pixels is searched"
    stsz = struct.pack('>I4sIII', 20, b'stsz', 0, 10, 10**9)
    for i, b in enumerate((clip+struct.pack('>I4s', 28, b'free')+stsz, clip+struct.pack('>I4sQ', 1, b'skip', 36)+stsz, stsz+clip)):
        (p := tmp_path/f'{i}.mp4').write_bytes(b)
        with pytest.raises(BadVideo, match='too large'): probe_video(p)
    at = clip.find(b'mdat')
    if int.from_bytes(clip[at-4:at], 'big')>40:                                       # among the pixels it means nothing
        (p := tmp_path/'pixels.mp4').write_bytes(clip[:at+8]+stsz+clip[at+28:])
        try: assert probe_video(p)['packets']==4
        except BadVideo as e: assert e.reason!='too large'


@pytest.mark.parametrize('kind', [b'stts', b'ctts', b'stsc', b'trak', b'vide'])
def test_the_search_for_tables_is_no_bomb_itself(kind, tmp_path):
    "A few hundred kilobytes full of the names of tables, in a process of its own that may take half a gigabyte more than it has"
    body = b'soun'+struct.pack('>4sIIII', b'stts', 0, 1, 9, 1)+(kind+b'\0\0\0\0\xff\xff\xff\xff')*35_000
    (tmp_path/'a.mp4').write_bytes(struct.pack('>I4s', len(body)+8, b'free')+body)
    code = ('import resource\nfrom pathlib import Path\nfrom hff.video import BadVideo, probe_video\n'
            'used = int(Path("/proc/self/statm").read_text().split()[0])*4096\nresource.setrlimit(resource.RLIMIT_AS, (used+2**29,)*2); resource.setrlimit(resource.RLIMIT_CPU, (30, 30))\n'
            'try: probe_video("a.mp4")\nexcept BadVideo as e: print(e.reason)\n')
    if sys.platform=='linux':
        r = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True)
        assert r.stdout.strip()==('cannot decode' if kind==b'vide' else 'too large'), r.stderr[-500:]


def test_words_that_look_like_tables_are_no_bomb(clip, tmp_path):
    "A text about a video and its soundtrack, and a table's name here and there"
    text = b'video with soundtrack '*2000+b'stco co64 stsc '
    (p := tmp_path/'a.mp4').write_bytes(clip+struct.pack('>I4s', len(text)+8, b'free')+text)
    assert len(read_video(p))==4


def test_many_tracks_of_a_fair_size_are_a_bomb(clip, tmp_path):
    "Each may claim as much as one track may; FFmpeg alone would take 140 megabytes for each"
    b = lies(clip, samples=3_900_000, times=3_900_000, chunk=3_900_000)
    i, m = b.find(b'trak')-4, b.find(b'moov')-4
    n, whole = (int.from_bytes(b[k:k+4], 'big') for k in (i, m))
    (p := tmp_path/'a.mp4').write_bytes(b[:m]+struct.pack('>I', whole+19*n)+b[m+4:i]+b[i:i+n]*20+b[i+n:])
    with pytest.raises(BadVideo, match='too large.*index'): probe_video(p)


@pytest.mark.parametrize('head', [struct.pack('>I4s', 256, b'free'), struct.pack('>I', 442)+b'\x44\0\4\0', struct.pack('>IIQ', 1, 0x67640010, 256), b'\0\0\1\0\1\2\3\4'])
def test_a_bomb_does_not_pass_as_another_format(head, clip, tmp_path):
    "FFmpeg looks for boxes further down, whatever the first one is called"
    size = 442 if head[2:4]==b'\1\xba' else 256
    (p := tmp_path/'a.mp4').write_bytes(head.ljust(size, b'\0')+lies(clip, samples=10**7, times=10**7, chunk=10**7))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BadVideo): probe_video(p)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss-before<200_000          # KB


@pytest.mark.parametrize('kind', ['h264', 'mpegts'])
def test_a_stream_without_boxes_may_hold_any_word(kind, tmp_path):
    "In gigabytes of it each of them comes by chance"
    with av.open(str(tmp_path/'a'), 'w', format=kind) as out:
        s = out.add_stream('libx264', rate=25); s.width = s.height = 32; s.pix_fmt = 'yuv420p'
        for i in range(4): out.mux(s.encode(av.VideoFrame.from_ndarray(np.full((32, 32, 3), 60*i, np.uint8), format='rgb24')))
        out.mux(s.encode(None))
    with open(tmp_path/'a', 'ab') as f: f.write((b'\0\0\1\x0c' if kind=='h264' else b'G\x1f\xff\x10')+(b'stsz'+b'\xff'*20).ljust(184, b'\xff'))
    assert len(read_video(tmp_path/'a'))==4


def test_plain_sound_has_many_samples_and_is_no_bomb(tmp_path):
    "Three minutes of 48000 numbers a second beside the pictures"
    with av.open(str(tmp_path/'a.mov'), 'w') as out:
        v, a = out.add_stream('libx264', rate=25), out.add_stream('pcm_s16le', rate=48000)
        v.width = v.height = 32; v.pix_fmt = 'yuv420p'
        for i in range(4): out.mux(v.encode(av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format='rgb24')))
        out.mux(v.encode(None))
        for i in range(180):
            f = av.AudioFrame.from_ndarray(np.zeros((1, 48000*2), np.int16), format='s16', layout='stereo'); f.sample_rate = 48000; f.pts = 48000*i
            out.mux(a.encode(f))
        out.mux(a.encode(None))
    assert len(read_video(tmp_path/'a.mov'))==4


def test_limits_can_be_raised_and_hold(clip, tmp_path, monkeypatch):
    (p := tmp_path/'a.mp4').write_bytes(clip)
    assert len(read_video(p))==4
    for k, v in dict(pixels=1000, frames=3, bytes=10_000, seconds=.1).items():
        with monkeypatch.context() as m:
            m.setattr(LIMITS, k, v)
            with pytest.raises(BadVideo, match=f'too large.*LIMITS.{k}'): read_video(p)
    (tmp_path/'c.mp4').write_bytes(lies(clip, seconds=10**9))
    with pytest.raises(BadVideo, match='seconds'): probe_video(tmp_path/'c.mp4')
    monkeypatch.setattr(LIMITS, 'pixels', 100)
    with pytest.raises(HffError, match='LIMITS.pixels'): read_picture(trees.PORTRAITS/'male_20.jpg')
    monkeypatch.setattr(LIMITS, 'pixels', 10**9)
    assert read_picture(trees.PORTRAITS/'male_20.jpg').ndim==3


def test_frames_that_claim_to_be_walls(tmp_path):
    "JPEG frames of 32 x 32 whose own headers say 40000 x 40000: more than four gigabytes each"
    with av.open(str(tmp_path/'a.avi'), 'w') as out:
        s = out.add_stream('mjpeg', rate=25); s.width = s.height = 32; s.pix_fmt = 'yuvj420p'
        for i in range(3): out.mux(s.encode(av.VideoFrame.from_ndarray(np.full((32, 32, 3), 80*i, np.uint8), format='rgb24')))
        out.mux(s.encode(None))
    b = (tmp_path/'a.avi').read_bytes()
    assert len(read_video(tmp_path/'a.avi'))==3 and b.count(start := b'\xff\xc0\0\x11\x08\0\x20\0\x20')==3
    (tmp_path/'b.avi').write_bytes(b.replace(start, start[:5]+struct.pack('>HH', 40_000, 40_000)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for read in (read_video, lambda p: sample_video(p, 2)):
        with pytest.raises(BadVideo): read(tmp_path/'b.avi')
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss-before<200_000          # KB


def test_a_frame_that_grows_on_the_way_is_refused(tmp_path, monkeypatch):
    "A raw stream whose second part is larger than its header said"
    for i, side in enumerate((32, 128)): write_video(tmp_path/f'{i}.mp4', np.zeros((3, side, side, 3), np.uint8))
    def raw(p):
        with av.open(str(p)) as c:
            f = av.BitStreamFilterContext('h264_mp4toannexb', c.streams.video[0])
            return b''.join(bytes(q) for x in [*c.demux(c.streams.video[0])] for q in f.filter(x if x.size else None))
    (p := tmp_path/'a.h264').write_bytes(raw(tmp_path/'0.mp4')+raw(tmp_path/'1.mp4'))
    assert [f.shape[0] for f in sample_video(p, 9)[1]]==[32]*3+[128]*3
    monkeypatch.setattr(LIMITS, 'pixels', 64*64)
    with pytest.raises(BadVideo): sample_video(p, 9)


def test_memory_of_damaged_headers_is_bounded(tmp_path, clip):
    "In a process of its own that may take one gigabyte more than it has"
    (tmp_path/'a.mp4').write_bytes(lies(clip, samples=10**9, times=10**9, chunk=10**9))
    (tmp_path/'b.png').write_bytes(bomb(60_000, 60_000))
    (tmp_path/'w.safetensors').write_bytes(struct.pack('<Q', 2**62)+b'{')
    code = ('import resource, sys\nfrom pathlib import Path\nfrom hff.clips import read_picture\nfrom hff.video import read_video\nfrom hff.backbones import read_weights\nfrom hff.paths import HffError\n'
            'used = int(Path("/proc/self/statm").read_text().split()[0])*4096\nresource.setrlimit(resource.RLIMIT_AS, (used+2**30,)*2)\n'
            'for f, p in ((read_video, "a.mp4"), (read_picture, "b.png"), (read_weights, "w.safetensors")):\n    try: f(p); sys.exit(f"{p} was read")\n    except HffError: pass\n')
    if sys.platform=='linux':
        r = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True)
        assert r.returncode==0, r.stderr[-500:]
