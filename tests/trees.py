"Tiny trees in every official layout: real H.264 clips of portraits, and lists in the publishers' own formats"
import json, tempfile
from functools import cache
from pathlib import Path

import cv2, numpy as np

from hff.clips import read_picture
from hff.sources import FFPP_FOLDERS
from hff.video import write_mask_video, write_video

PORTRAITS = Path(__file__).parent/'data/portraits'
FACES = ('female_14', 'female_44', 'male_20', 'male_65')
SIZE, FRAMES = 192, 8
SPLITS = dict(train=[['000','001']], val=[['002','003']], test=[['004','005']])   # of FaceForensics++
NAMES = ('ffpp', 'dfd', 'celebdf_v1', 'celebdf_v2', 'dfdc', 'dfdcp', 'df1', 'uadfv', 'ffiw', 'folder')


def _moved(picture):
    "The picture, shifted a little from frame to frame"
    return np.stack([np.roll(picture, t, 1) for t in range(FRAMES)])


def _weight(x):
    "Soft ellipse in the middle of a portrait, (SIZE, SIZE) in 0..1, centred at column `x`"
    y, c = np.mgrid[:SIZE, :SIZE]
    return np.clip(2-2*np.hypot((c-x)/(.28*SIZE), (y-.5*SIZE)/(.36*SIZE)), 0, 1)


@cache
def portrait(i):
    "One of four people, (SIZE, SIZE, 3)"
    return cv2.resize(read_picture(PORTRAITS/f'{FACES[i%4]}.jpg'), (SIZE, SIZE), interpolation=cv2.INTER_AREA)


@cache
def swapped(i):
    "Person `i` with the middle of the next person's picture"
    w = _weight(SIZE/2)[...,None]
    return (portrait(i)*(1-w)+portrait(i+1)*w).astype('uint8')


def _encoded(write, frames):
    with tempfile.TemporaryDirectory() as d: return write(Path(d)/'a.mp4', frames).read_bytes()


@cache
def real(i): return _encoded(write_video, _moved(portrait(i)))

@cache
def fake(i): return _encoded(write_video, _moved(swapped(i)))

@cache
def mask(): return _encoded(write_mask_video, _moved(np.uint8(255*(_weight(SIZE/2)>0))))

@cache
def pair(i, forged):
    "Two people side by side; when `forged`, the smaller one on the right is the fake"
    right = cv2.resize((swapped if forged else portrait)(i+2), (3*SIZE//4, 3*SIZE//4), interpolation=cv2.INTER_AREA)
    frame = np.full((SIZE, 2*SIZE, 3), 128, 'uint8')
    frame[:,:SIZE], frame[SIZE//8:SIZE//8+len(right),SIZE:SIZE+len(right)] = portrait(i), right
    return _encoded(write_video, np.repeat(frame[None], FRAMES, 0))

@cache
def pair_mask():
    "Mask of `pair`: the right face, and nothing in the first frame"
    right = cv2.resize(np.uint8(255*(_weight(SIZE/2)>0)), (3*SIZE//4, 3*SIZE//4), interpolation=cv2.INTER_NEAREST)
    frame = np.zeros((FRAMES, SIZE, 2*SIZE), 'uint8')
    frame[1:,SIZE//8:SIZE//8+len(right),SIZE:SIZE+len(right)] = right
    return _encoded(write_mask_video, frame)


def put(root, files):
    "Write {path: bytes or text} below `root`"
    for name, data in files.items():
        (p := Path(root)/name).parent.mkdir(parents=True, exist_ok=True)
        p.write_bytes(data if isinstance(data, bytes) else data.encode())


def lines(names): return ''.join(f'{n}\n' for n in names)


def tree_ffpp(folder, methods=('DF','F2F','FS','NT','FSh'), quality='c23'):
    "Six people; FaceShifter beside the four methods; masks for Deepfakes"
    files = {f'splits/{s}.json': json.dumps(p) for s, p in SPLITS.items()}
    for a, b in (p for ps in SPLITS.values() for p in ps):
        files |= {f"{FFPP_FOLDERS['real']}/{quality}/videos/{v}.mp4": real(int(v)) for v in (a, b)}
        for m in methods:
            f = FFPP_FOLDERS.get(m, 'manipulated_sequences/FaceShifter')
            files |= {f'{f}/{quality}/videos/{v}.mp4': fake(int(v[:3])) for v in (f'{a}_{b}', f'{b}_{a}')}
            if m=='DF': files |= {f'{f}/masks/videos/{v}.mp4': mask() for v in (f'{a}_{b}', f'{b}_{a}')}
    put(folder, files)
    return {}, {(s, k): n for s in SPLITS for k, n in ((0, 2), (1, 8))}


def tree_dfd(folder, quality='c23'):
    "Four actors in two scenes, two people in a frame, only one of them forged"
    r, f = 'original_sequences/actors', 'manipulated_sequences/DeepFakeDetection'
    scenes, files = ('talking_against_wall', 'walking_outside'), {}
    for i in range(4):
        for s in scenes: files[f'{r}/{quality}/videos/{i+1:02}__{s}.mp4'] = pair(i, False)
        name = f'{i+1:02}_{(i+2)%4+1:02}__{scenes[0]}__ABCDEF{i:02}'
        files |= {f'{f}/{quality}/videos/{name}.mp4': pair(i, True), f'{f}/masks/videos/{name}.mp4': pair_mask()}
    put(folder, files)
    return {}, {('test', 0): 8, ('test', 1): 4}


def tree_celebdf(folder, people=8):
    "Eight people, two YouTube clips; three on the test list"
    files = {f'Celeb-real/id{i}_0000.mp4': real(i) for i in range(people)} | {f'YouTube-real/{i:05}.mp4': real(i) for i in range(2)}
    files |= {f'Celeb-synthesis/id{i}_id{j}_0000.mp4': fake(i) for i in range(people) for j in ((i+1)%people, (i+3)%people)}
    put(folder, files | {'List_of_testing_videos.txt': lines(['1 YouTube-real/00001.mp4', '1 Celeb-real/id0_0000.mp4', '0 Celeb-synthesis/id0_id1_0000.mp4'])})
    return {}, {('test', 0): 2, ('test', 1): 1, ('train', 0): people, ('train', 1): 2*people-1}


def tree_dfdc(folder, form='csv'):
    "Two training parts with originals, a test part with `labels.csv`, `metadata.json` or both"
    name, files = lambda i: chr(97+i)*10, {}
    for part in range(2):
        ids = [name(5*part+i) for i in range(5)]
        meta = {f'{v}.mp4': dict(label='REAL', split='train') if i<2 else dict(label='FAKE', split='train', original=f'{ids[i%2]}.mp4') for i, v in enumerate(ids)}
        files |= {f'train/dfdc_train_part_{part}/{v}.mp4': (real if i<2 else fake)(i) for i, v in enumerate(ids)}
        files[f'train/dfdc_train_part_{part}/metadata.json'] = json.dumps(meta)
    test = {name(20+i): i%2 for i in range(4)}
    files |= {f'test/{v}.mp4': (fake if y else real)(i) for i, (v, y) in enumerate(test.items())}
    if form!='json': files['test/labels.csv'] = 'filename,label\n'+lines(f'{v}.mp4,{y}' for v, y in test.items())
    if form!='csv': files['test/metadata.json'] = json.dumps({f'{v}.mp4': dict(is_fake=y, augmentations={}) for v, y in test.items()})
    put(folder, files)
    return {}, {('train', 0): 4, ('train', 1): 6, ('test', 0): 2, ('test', 1): 2}


def tree_dfdcp(folder, windows=False):
    "Four people with two recordings, both methods; the last two people are test"
    files, entries, actors = {}, {}, ('1001', '1002', '1003', '1004')
    for i, a in enumerate(actors):
        part, other = 'train' if i<2 else 'test', actors[i^1]
        for n in range(2): files[v := f'original_videos/{a}/{a}_A_{n:03}.mp4'] = real(i); entries[v] = dict(label='real', set=part)
        for m in ('method_A', 'method_B'):
            files[v := f'{m}/{a}/{a}_A/{other}_{a}_A_000.mp4'] = fake(i)
            entries[v] = dict(label='fake', set=part, swapped_id=other, target_id=a)
    put(folder, files | {'dataset.json': json.dumps({k.replace('/', '\\') if windows else k: v for k, v in entries.items()})})
    return {}, {(s, k): 4 for s in ('train','test') for k in (0, 1)}


def tree_df1(folder, variants=('end_to_end', 'end_to_end_level_3')):
    "Six fakes a variant beside a FaceForensics++ with their targets"
    tree_ffpp(folder/'ffpp', methods=())
    own = dict(train=['000_M101','004_W001'], val=['001_M102','005_W001'], test=['002_M103','003_W002'])
    files = {f'df1/lists/splits/{s}.txt': lines(f'{v}.mp4' for v in vs) for s, vs in own.items()}
    for var in variants:
        names = sorted(v for vs in own.values() for v in vs)
        files |= {f'df1/manipulated_videos/{var}/{v}.mp4': fake(int(v[:3])) for v in names}
        files[f'df1/lists/manipulated_videos_lists/manipulated_videos_{var}_list.txt'] = lines(f'manipulated_videos/{var}/{v}.mp4' for v in names)
    files['df1/source_videos/M101/light_up/neutral/camera_front/M101_light_up_neutral_camera_front.mp4'] = real(0)
    put(folder, files)
    return dict(root=folder/'df1', ffpp=folder/'ffpp'), {(s, k): n for s in SPLITS for k, n in ((0, 2), (1, 2*len(variants)))}


def tree_uadfv(folder):
    put(folder, {f'real/{i:04}.mp4': real(i) for i in range(4)} | {f'fake/{i:04}_fake.mp4': fake(i) for i in range(4)})
    return {}, {('test', 0): 4, ('test', 1): 4}


def tree_ffiw(folder):
    "Two pairs a split, real and fake of one name, masks"
    files = {}
    for s in ('train', 'val', 'test'):
        for i in range(2):
            v = f'{s}/{s}_{i:08}.mp4'
            files |= {f'source/{v}': pair(i, False), f'target/{v}': pair(i, True), f'target_mask/{v}': pair_mask()}
    put(folder, files)
    return {}, {(s, k): 2 for s in ('train','val','test') for k in (0, 1)}


def tree_folder(folder):
    "Pictures and videos, no splits"
    picture = lambda im: cv2.imencode('.png', im[...,::-1])[1].tobytes()
    put(folder, {f'real/{i}.png': picture(portrait(i)) for i in range(3)} | {f'fake/deep/{i}.png': picture(swapped(i)) for i in range(3)}
        | {'real/clip.mp4': real(3), 'fake/clip.mp4': fake(3), 'fake/notes.txt': 'no picture'})
    return {}, {('test', 0): 4, ('test', 1): 4}


def make_tree(name, folder, **how):
    "Build the tree of data set `name` in `folder`: dict of root, options for the reader, expected {(split, label): videos}"
    folder = Path(folder)
    options, expected = globals()[f"tree_{'celebdf' if name.startswith('celebdf') else name}"](folder, **how)
    return dict(root=options.pop('root', folder), options=options, expected=expected)
