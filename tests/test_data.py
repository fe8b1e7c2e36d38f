"Video, pictures, faces, readers, torch data: what would go wrong in silence"
import json
from pathlib import Path

import cv2, numpy as np, pandas as pd, pytest
from PIL import Image

from hff.datasets import FaceDataset, epoch_batches
from hff.clips import read_picture
from hff.extract import BOX, extract_faces, read_faces
from hff.faces import find_landmarks, square_box
from hff.manifest import check_manifest, identity_leaks
from hff.paths import HffError, sha256
from hff.sources import FFPP_FOLDERS, read_ffpp
from hff.video import count_frames, frame_indices, read_mask_video, read_video, write_mask_video, write_video

PORTRAITS = Path(__file__).parent/'data/portraits'


@pytest.fixture(scope='module')
def frames():
    g = np.random.default_rng(0).integers(0, 255, (8, 24, 24, 3)).astype('uint8')
    return np.stack([np.kron(f, np.ones((8, 8, 1), 'uint8')) for f in g])   # 192 x 192: where x264 with AVX-512 did not repeat itself


def test_encoder_repeats_itself(frames, tmp_path):
    sums = {sha256(write_video(tmp_path/f'{i}.mp4', frames)) for i in range(30)}
    assert len(sums)==1
    assert (read_mask_video(write_mask_video(tmp_path/'m.mp4', frames[...,0]))==frames[...,0]).all()


def test_frames_are_counted_by_decoding(frames, tmp_path):
    p = write_video(tmp_path/'a.mp4', frames)
    assert count_frames(p)==8 and len(read_video(p))==8
    assert (read_video(p, [6,1])==read_video(p)[[6,1]]).all()
    assert frame_indices(270, 32)[-1]==269                                    # not the first 32
    with pytest.raises(HffError, match='frame 8'): read_video(p, [8])


@pytest.mark.parametrize('spoil', [lambda b: b[:len(b)//2], lambda b: b'', lambda b: b'junk'*500])
def test_broken_video_is_named(frames, tmp_path, spoil):
    p = write_video(tmp_path/'a.mp4', frames)
    (bad := tmp_path/'bad.mp4').write_bytes(spoil(p.read_bytes()))
    for f in (read_video, count_frames):
        with pytest.raises(HffError, match='bad.mp4'): f(bad)


def test_truncated_picture_is_refused(tmp_path):
    whole = (PORTRAITS/'male_20.jpg').read_bytes()
    (p := tmp_path/'cut.jpg').write_bytes(whole[:len(whole)*2//3])
    with pytest.raises(HffError, match='cut.jpg'): read_picture(p)


def test_colour_models(tmp_path):
    im = Image.open(PORTRAITS/'male_20.jpg'); want = np.asarray(im).astype(float)
    exif = Image.Exif(); exif[274] = 3
    Image.fromarray(np.asarray(im)[::-1,::-1]).save(tmp_path/'turned.jpg', exif=exif, quality=95)
    im.convert('CMYK').save(tmp_path/'cmyk.jpg', quality=95); im.quantize(256).save(tmp_path/'palette.png')
    for n in ('turned.jpg', 'cmyk.jpg', 'palette.png'): assert np.abs(read_picture(tmp_path/n)-want).mean() < 8, n
    Image.fromarray(np.asarray(im.convert('L')).astype('uint16')*257).save(tmp_path/'deep.png')
    assert (read_picture(tmp_path/'deep.png')[...,0]==np.asarray(im.convert('L'))).all()


def test_landmarks_follow_the_picture():
    im = read_picture(PORTRAITS/'female_44.jpg')
    p = find_landmarks(im)
    assert np.abs(find_landmarks(im[12:,8:])+[8,12]-p).mean() < .01*np.ptp(p[:,0])
    flipped = find_landmarks(im[:,::-1]); flipped[:,0] = im.shape[1]-1-flipped[:,0]
    assert np.abs(flipped[[1,152]]-p[[1,152]]).mean() < .03*np.ptp(p[:,0])       # nose tip and chin are on the middle line
    assert find_landmarks(read_picture(PORTRAITS/'no_face.jpg')) is None


@pytest.fixture
def tree(tmp_path, frames):
    "Two real clips, one fake, one listed clip absent, one broken"
    pairs = dict(train=[['000','001']], val=[['002','003']], test=[['004','005']])
    (tmp_path/'splits').mkdir()
    for s, p in pairs.items(): (tmp_path/f'splits/{s}.json').write_text(json.dumps(p))
    face = cv2.resize(read_picture(PORTRAITS/'female_14.jpg'), (192, 192))
    clip = np.stack([np.roll(face, t, 1) for t in range(6)])
    for v in ('000','001','002','003'): write_video(tmp_path/FFPP_FOLDERS['real']/f'c23/videos/{v}.mp4', clip)
    (tmp_path/FFPP_FOLDERS['real']/'c23/videos/004.mp4').write_bytes(b'junk')
    write_video(tmp_path/FFPP_FOLDERS['DF']/'c23/videos/000_001.mp4', clip[:,:,::-1])
    return tmp_path


def test_missing_and_broken_clips_keep_their_rows(tree):
    with pytest.warns(UserWarning, match='6 of 12 listed clips'): m = read_ffpp(tree)
    assert len(m)==12 and not len(identity_leaks(m))
    out = [extract_faces(m, tree, tree/f'faces{j}', frames=3, size=96, jobs=j) for j in (1, 2)]
    assert sha256(out[0])==sha256(out[1])                                      # whatever the number of processes
    t = read_faces(out[0])
    assert set(t.video)==set(m.video)
    assert t.groupby('video').status.first().to_dict()=={**{v:'missing' for v in m.video}, '004':'error', '000':'ok', '001':'ok', '002':'ok', '003':'ok', '000_001':'ok'}
    assert (t[t.status=='ok'].groupby('video').size()==3).all()


def test_geometry_comes_from_the_target(tree):
    p = find_landmarks(read_video(tree/FFPP_FOLDERS['real']/'c23/videos/000.mp4', [0])[0])
    (tree/'landmarks').mkdir(); np.savez(tree/'landmarks/000.npz', landmarks=np.stack([p+[t,0] for t in range(6)]).astype('float32'))
    m = read_ffpp(tree, report=False)
    t = read_faces(extract_faces(m[m.target=='000'], tree, tree/'faces', frames=3, size=96, jobs=1)).query("status=='ok'")
    real, fake = (t[t.method==k][BOX].to_numpy() for k in ('real','DF'))
    assert len(real)==3 and (real==fake).all() and (real[0]==square_box(p)).all()
    assert all(FaceDataset(t, tree/'faces')[i][0].shape==(3,96,96) for i in range(len(t)))


def test_manifest_refuses():
    row = dict(dataset='d', method='DF', quality='c23', video='0_1', split='test', label=1, path='a/0_1.mp4', source='1', target='0')
    good = pd.DataFrame([row, row | dict(method='FS')])
    assert check_manifest(good) is good                                        # same name, other method: another video
    for change in (dict(), dict(method='F2F', label=2), dict(method='F2F', path='/a.mp4'), dict(method='F2F', quality='hq')):
        with pytest.raises(HffError): check_manifest(pd.DataFrame([row, row | change]))


def test_epoch_is_decided_by_seed_and_epoch():
    y = np.r_[np.zeros(5), np.ones(20)]
    a, b = (np.concatenate(epoch_batches(25, 8, 3, 1, labels=y)) for _ in 'ab')
    assert (a==b).all() and (a!=np.concatenate(epoch_batches(25, 8, 3, 2, labels=y))).any()
    assert y[a].mean()==.5 and sorted(a[y[a]==1])==list(range(5, 25))
