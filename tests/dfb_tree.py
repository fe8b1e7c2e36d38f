"""A tiny copy of DeepfakeBench's processed release: rgb tree, JSON files, LMDB; no picture of it shows anyone.

`build(root)` writes `rgb/`, `dataset_json/` and `lmdb/` below `root`, with the habits of the real one: backslashes, everything in train, val and test,
a validation set that is the test set, a record in place of DFDC's `val`, reals repeated in every file of FaceForensics++, one clip without masks.
"""
import io, json
from pathlib import Path

import numpy as np
from PIL import Image

PAIRS = dict(train=[('000', '003'), ('001', '002')], val=[('004', '005')], test=[('006', '007')])
SPLIT = {v: s for s, pairs in PAIRS.items() for a, b in pairs for v in (a, b, f'{a}_{b}', f'{b}_{a}')}
METHODS = {'FF-DF': 'Deepfakes', 'FF-F2F': 'Face2Face', 'FF-FS': 'FaceSwap', 'FF-NT': 'NeuralTextures'}
ALL, FRAMES = ('train', 'val', 'test'), (0, 1, 2, 10, 1000)


def png(value, size=8):
    "Bytes of a grey picture"
    Image.fromarray(np.full((size, size, 3), value%256, 'uint8')).save(buffer := io.BytesIO(), 'png')
    return buffer.getvalue()


def clip(rgb, folder, video, masks=False, frames=FRAMES):
    "Frames, landmarks and perhaps masks of one video; gives back the listed paths, as written on Windows"
    kinds = dict(frames=png, landmarks=None) | (dict(masks=png) if masks else {})
    for kind in kinds:
        (d := rgb/folder/kind/video).mkdir(parents=True, exist_ok=True)
        for n in frames:
            if kind=='landmarks': np.save(d/f'{n:03d}.npy', np.arange(162).reshape(81, 2)+n)
            else: (d/f'{n:03d}.png').write_bytes(png(n))
    listed = lambda kind: ['.\\datasets\\rgb\\'+f'{folder}/{kind}/{video}/{n:03d}.png'.replace('/', '\\') for n in frames]
    return dict(frames=listed('frames')) | (dict(masks=listed('masks')) if masks else {})


def part(rgb, label, folder, where, masks=(), quality='c23'):
    "split -> (quality ->) video -> entry, for a dictionary video -> splits"
    out = {s: {quality: {}} if quality else {} for s in ALL}
    for video, splits in where.items():
        entry = dict(label=label, **clip(rgb, f'{folder}/{quality}' if quality else folder, video, video in masks))
        for s in splits: (out[s][quality] if quality else out[s])[video] = entry
    return out


def ffpp(rgb):
    "Four files and the joint one; `000_007` is in no pair and therefore in all splits"
    real = part(rgb, 'FF-real', 'FaceForensics++/original_sequences/youtube', {v: [s] for v, s in SPLIT.items() if len(v)==3})
    fakes = {v: [s] for v, s in SPLIT.items() if len(v)==7} | {'000_007': ALL}
    out = {label: {label: {'FF-real': real, label: part(rgb, label, f'FaceForensics++/manipulated_sequences/{m}', fakes, set(fakes)-{'003_000'})}} for label, m in METHODS.items()}
    for s, pairs in PAIRS.items(): (rgb/f'FaceForensics++/{s}.json').write_text(json.dumps(pairs))
    return out | {'FaceForensics++': {'FaceForensics++': {'FF-real': real} | {label: out[label][label][label] for label in METHODS}}}


def others(rgb):
    "The files of the other data sets, each with its own fault"
    tree = lambda label, folder, where, **k: part(rgb, label, folder, where, quality='', **k)
    a, b = 'FaceForensics++/original_sequences/actors', 'FaceForensics++/manipulated_sequences/DeepFakeDetection'
    celeb = tree('CelebDFv2_real', 'Celeb-DF-v2/Celeb-real', {'id0_0000': ALL, 'id1_0003': ['val', 'test']})
    tube = tree('CelebDFv2_real', 'Celeb-DF-v2/YouTube-real', {'00000': ['train'], '00013': ALL})
    dfdc = {'DFDC_Real': tree('DFDC_Real', 'DFDC/test', {'aaaaaaaaaa': ['test']}), 'DFDC_Fake': tree('DFDC_Fake', 'DFDC/test', {'bbbbbbbbbb': ['test']})}
    for d in dfdc.values(): d['val'] = next(iter(d['test'].values()))
    return {
        'DeepFakeDetection': {'DFD_real': part(rgb, 'DFD_real', a, {'01__talking_against_wall': ALL}),
                              'DFD_fake': part(rgb, 'DFD_fake', b, {'01_02__talking_against_wall__YVGY8LOK': ALL}, {'01_02__talking_against_wall__YVGY8LOK'})},
        'Celeb-DF-v2': {'CelebDFv2_real': {s: celeb[s]|tube[s] for s in ALL},
                        'CelebDFv2_fake': tree('CelebDFv2_fake', 'Celeb-DF-v2/Celeb-synthesis', {'id0_id1_0000': ALL, 'id1_id0_0003': ['train']})},
        'DFDCP': {'DFDCP_Real': tree('DFDCP_Real', 'DFDCP/original_videos', {'643507_C_009': ['train'], '643508_A_001': ['val', 'test']}),
                  'DFDCP_FakeA': tree('DFDCP_FakeA', 'DFDCP/method_A', {'1224068_643508_A_001': ['val', 'test']}),
                  'DFDCP_FakeB': tree('DFDCP_FakeB', 'DFDCP/method_B', {'1224068_643507_C_009': ['train']})},
        'DFDC': dfdc,
        'DeeperForensics-1.0': {'DF_real': tree('DF_real', 'DeeperForensics-1.0/source_videos/M101', {'M101_light_down_angry_camera_front': ALL}),
                                'DF_fake': tree('DF_fake', 'DeeperForensics-1.0/manipulated_videos/end_to_end', {'000_M101': ['train'], '006_M101': ['test']})},
        'UADFV': {'UADFV_Real': tree('UADFV_Real', 'UADFV/real', {'0000': ALL}), 'UADFV_Fake': tree('UADFV_Fake', 'UADFV/fake', {'0000_fake': ALL})}}


def pack(rgb, lmdbs, name, windows, skip=()):
    "An LMDB of one data set, in the spelling of one system; trees called `video` are left out, as the builder does"
    import lmdb
    (out := lmdbs/f'{name}_lmdb').mkdir(parents=True)
    with lmdb.open(str(out), map_size=1<<26) as env, env.begin(write=True) as t:
        for p in sorted((rgb/name).rglob('*.*')):
            inside = p.relative_to(rgb/name).as_posix()
            if p.suffix not in ('.png', '.npy') or 'video' in inside or inside in skip: continue
            value = np.load(p).astype('uint32' if windows else 'int64').tobytes() if p.suffix=='.npy' else p.read_bytes()
            t.put((f'{name}/{inside}'.replace('/', '\\') if windows else f'{name}\\{inside}').encode(), value)


def build(root, packed=True):
    "Write all of it below `root`"
    root = Path(root); rgb, jsons = root/'rgb', root/'dataset_json'
    rgb.mkdir(parents=True); jsons.mkdir()
    for name, data in (ffpp(rgb)|{k: {k: v} for k, v in others(rgb).items()}).items(): (jsons/f'{name}.json').write_text(json.dumps(data))
    if packed:
        pack(rgb, root/'lmdb', 'FaceForensics++', windows=True, skip=('manipulated_sequences/FaceSwap/c23/frames/006_007/010.png',))
        pack(rgb, root/'lmdb', 'Celeb-DF-v2', windows=False)
        pack(rgb, root/'lmdb', 'DFDCP', windows=False)
    return root
