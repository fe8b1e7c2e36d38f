"A picture, a folder or a video in, a score for each face out; what goes wrong is a row"
import json, os, subprocess, sys
from pathlib import Path

import av, cv2, numpy as np, pandas as pd, pytest, torch
from PIL import Image

import hff
from hff.checkpoints import half_checkpoint, load_checkpoint, save_checkpoint
from hff.clips import read_picture
from hff.extract import Cropping, frame_face
from hff.inference import COLUMNS, OWN_CHECKPOINT, open_model, summary, write_json_report
from hff.models import create_model
from hff.overlays import corners, frame_maps, heat_map, overlay_names, overlay_picture, overlay_video, plot_timeline, rows_at, write_overlays
from hff.paths import HffError, asset
from hff.video import encode, iter_video, probe_video

PORTRAITS = Path(__file__).parent/'data/portraits'
NAMES = ('female_14', 'female_44', 'male_20', 'male_65')


@pytest.fixture(scope='module', params=['two_stream', 'rgb'])
def net(request, tmp_path_factory):
    "Checkpoint of a random network whose features are alive"
    torch.manual_seed(1)
    m = create_model(request.param, backbone='mobilenetv2_100', pretrained=False, image_size=64).train()
    x = torch.stack([torch.from_numpy(cv2.resize(read_picture(PORTRAITS/f'{n}.jpg'), (64, 64))).permute(2, 0, 1)/127.5-1 for n in NAMES])
    with torch.no_grad(): [m(x) for _ in range(20)]                       # batch-norm statistics of real pictures
    return save_checkpoint(m, tmp_path_factory.mktemp('net')/f'{request.param}.safetensors', trained_on='miniff', cropping=dict(margin=1.5))


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    torch.manual_seed(2)
    m = create_model(backbone='tf_efficientnet_lite0', pretrained=True, image_size=64, head='cosine')
    return load_checkpoint(save_checkpoint(m, tmp_path_factory.mktemp('m')/'m.safetensors'))


def frames(n=12):
    "A face that moves, then nobody"
    face, nobody = read_picture(PORTRAITS/'female_14.jpg'), cv2.resize(read_picture(PORTRAITS/'no_face.jpg'), (288, 288))
    return [np.roll(face, 4*i, 1) if i<n-4 else nobody for i in range(n)]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "One of everything"
    d = tmp_path_factory.mktemp('folder')
    im = Image.open(PORTRAITS/'male_20.jpg')
    (d/'gut').mkdir(); (d/'.hidden').mkdir()
    im.save(d/'gut/männlich 男.png'); im.save(d/'.hidden/x.png')
    whole = (PORTRAITS/'male_20.jpg').read_bytes()
    (d/'broken.jpg').write_bytes(whole[:len(whole)*2//3]); (d/'zero.png').touch(); (d/'notes.txt').write_text('no picture')
    (d/'nobody.jpg').write_bytes((PORTRAITS/'no_face.jpg').read_bytes())
    grey = np.asarray(im.convert('L'))
    cv2.imwrite(str(d/'grey.png'), grey); Image.fromarray(grey.astype('uint16')*257).save(d/'deep.png')
    exif = Image.Exif(); exif[274] = 3
    Image.fromarray(np.asarray(im)[::-1, ::-1]).save(d/'turned.png', exif=exif)
    encode(d/'clip.mp4', frames(), fps=8)
    b = (d/'clip.mp4').read_bytes()
    (d/'cut.mp4').write_bytes(b[:len(b)//2]); (d/'zero.mp4').touch(); (d/'text.mp4').write_text('no video'*99)
    with av.open(str(d/'sound.mp4'), 'w') as out:
        s = out.add_stream('aac', rate=44100)
        f = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format='fltp', layout='mono'); f.sample_rate = 44100
        out.mux(s.encode(f)); out.mux(s.encode(None))
    (d/'loop').symlink_to(d, target_is_directory=True); (d/'gone.mp4').symlink_to(d/'nowhere.mp4')
    return d


@pytest.fixture(scope='module')
def table(folder, model): return hff.predict(folder, model, frames=6)


def test_scores_are_those_of_the_long_way(net):
    t = hff.predict(PORTRAITS, net, device='cpu')
    m, c = load_checkpoint(net), Cropping(size=64, margin=1.5)
    for r in t[t.status=='ok'].itertuples():
        f = frame_face(read_picture(PORTRAITS/r.file), c)
        with torch.no_grad(): z = m(torch.from_numpy(f['crop']).permute(2, 0, 1)[None]/127.5-1).logits[0]
        assert r.logit==pytest.approx((z[1]-z[0]).item(), abs=1e-4) and r.score==pytest.approx(z.softmax(0)[1].item(), abs=1e-5)
        assert [r.x0, r.y0, r.x1, r.y1, r.angle]==[*f['box'], 0]
    assert t.score.nunique()==4 and t.score.std()>1e-3
    assert 'not a detector of real deepfakes' in t.attrs['note'] and 'not calibrated' in t.attrs['calibration']
    pd.testing.assert_frame_equal(hff.predict(PORTRAITS, net, device='cpu'), t)                     # deterministic
    small = hff.predict(PORTRAITS, net, device='cpu', batch_size=1)
    assert np.allclose(small.score, t.score, atol=1e-5, equal_nan=True)
    assert (hff.predict(PORTRAITS, net, device='cpu', margin=1.3).score-t.score).abs().max()>1e-4   # the crop matters


def test_every_file_is_a_row(table):
    assert list(table.columns)==COLUMNS and table.attrs['skipped']=={'.txt': 1}
    s = summary(table).set_index('file')
    assert list(s.index)==sorted(['broken.jpg', 'clip.mp4', 'cut.mp4', 'deep.png', 'gone.mp4', 'grey.png', 'gut/männlich 男.png', 'nobody.jpg', 'sound.mp4',
                                  'text.mp4', 'turned.png', 'zero.mp4', 'zero.png'])
    said = {f: (r.status, r.reason) for f, r in s.iterrows() if r.status!='ok'}
    assert said=={'broken.jpg': ('error', 'unreadable picture'), 'zero.png': ('error', 'unreadable picture'), 'cut.mp4': ('error', 'cannot decode'), 'gone.mp4': ('missing', 'no file'),
                  'nobody.jpg': ('missing', 'no face'), 'sound.mp4': ('error', 'no video stream'), 'text.mp4': ('error', 'cannot decode'), 'zero.mp4': ('error', 'empty file')}
    assert s.score.isna().equals(s.status.ne('ok')) and table.score.isna().equals(table.status.ne('ok'))


def test_colour_depth_and_turn_do_not_matter(table):
    t = table.set_index('file')
    assert t.score['grey.png']==t.score['deep.png']
    assert t.loc['turned.png', ['score', 'x0', 'y0']].tolist()==t.loc['gut/männlich 男.png', ['score', 'x0', 'y0']].tolist()


def test_video(table, folder, model):
    t = table[table.file=='clip.mp4']
    assert t.frame.tolist()==[0, 2, 4, 7, 9, 11] and t.status.tolist()==['ok']*4+['missing']*2
    assert np.allclose(t.time, t.frame/8) and (t.duration==1.5).all()
    s = summary(t).iloc[0]
    assert s.score==pytest.approx(t.score.mean()) and (s.frames_scored, s.frames_looked, s.coverage)==(4, 6, 4/6)
    every = hff.predict(folder/'clip.mp4', model, frames=99)
    assert every.frame.tolist()==list(range(12)) and np.allclose(every.score[[0, 2, 4, 7]], t.score[:4], atol=1e-5)
    for pool in ('median', 'max', 'mean_logit'): assert 0<summary(t, pool).score[0]<1
    assert summary(t, 'max').score[0]==t.score.max()


def test_all_faces(model, tmp_path):
    pair = np.hstack([cv2.resize(read_picture(PORTRAITS/'male_20.jpg'), (200, 200)), np.zeros((200, 20, 3), np.uint8), read_picture(PORTRAITS/'female_44.jpg')[:200]])
    cv2.imwrite(str(tmp_path/'pair.png'), pair[..., ::-1])
    one, two = (hff.predict(tmp_path/'pair.png', model, faces=f) for f in ('largest', 'all'))
    assert len(one)==1 and two.face.tolist()==[0, 1] and two.score[0]==pytest.approx(one.score[0], abs=1e-5)
    assert summary(two).score[0]==two.score.max() and summary(two).frames_looked[0]==1
    assert (two.x0.min()<220)!=(two.x0.max()<220)


def test_a_detector_that_fails_is_a_row_but_a_wrong_name_is_not(model, monkeypatch):
    import hff.faces
    def moody(image):
        if image.shape!=(288, 288, 3): return []
        raise RuntimeError('no')
    monkeypatch.setitem(hff.faces.DETECTORS, 'moody', moody)
    t = hff.predict(PORTRAITS/'male_20.jpg', model, detector='moody')
    assert t[['status', 'reason']].values.tolist()==[['error', 'RuntimeError']]
    for bad, say in [(dict(detector='nobody'), 'nobody'), (dict(landmarks='none'), 'none'), (dict(margin=9), 'margin=9'), (dict(faces='both'), 'largest or all'),
                     (dict(pool='sum'), 'sum'), (dict(frames=0), 'frames=0'), (dict(device='abacus'), 'abacus')]:
        with pytest.raises(HffError, match=say): hff.predict(PORTRAITS, model, **bad)


def test_sources_and_checkpoints_that_are_none(tmp_path, model, folder):
    (tmp_path/'empty').mkdir(); (tmp_path/'half.safetensors').write_bytes(b'half a file')
    cases = [(tmp_path/'missing.mp4', model, 'missing.mp4'), (tmp_path/'empty', model, 'no picture or video'), (PORTRAITS, tmp_path/'half.safetensors', 'half.safetensors'),
             (PORTRAITS, tmp_path/'empty', 'model.safetensors'), (PORTRAITS, torch.nn.Linear(2, 2), 'no `config`')]
    for source, checkpoint, say in cases:
        with pytest.raises(HffError, match=say) as e: hff.predict(source, checkpoint)
        assert '\n' not in str(e.value)
    five = create_model('rgb', backbone='mobilenetv2_100', pretrained=False, image_size=64, num_classes=5)
    with pytest.raises(HffError, match='two, real and fake'): hff.predict(PORTRAITS, five)
    two = create_model('rgb', backbone='mobilenetv2_100', pretrained=False, image_size=64)
    blind = save_checkpoint(two, tmp_path/'blind.safetensors', recipe=dict(blank_face=True))
    with pytest.raises(HffError, match='never seen a face'): hff.predict(PORTRAITS, blind)
    assert hff.predict(PORTRAITS/'male_20.jpg', two).attrs['note']=='what it was trained on is not recorded'


def test_own_checkpoint():
    "It ships, or its absence is one clear line"
    try: asset(OWN_CHECKPOINT)
    except HffError:
        with pytest.raises(HffError, match='give a checkpoint'): open_model()
        return
    m = open_model(device='cpu')
    assert m.report.trained_on=='miniff' and hff.predict(PORTRAITS, m).status.eq('ok').sum()==4


def test_half_agrees_with_full(net, tmp_path):
    half = load_checkpoint(half_checkpoint(net, tmp_path/'half.safetensors', trained_on='something else'))
    full, x = load_checkpoint(net), torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))*2-1
    with torch.no_grad(): a, b = (m(x).logits.softmax(1)[:, 1] for m in (half, full))
    assert 0<(a-b).abs().max()<2e-3 and half.report.size<.6*full.report.size
    assert (half.report.trained_on, half.report.cropping)==('something else', dict(margin=1.5))
    assert 'something else' in str(half.report) and next(half.parameters()).dtype==torch.float32
    (run := tmp_path/'run').mkdir(); (run/'model.safetensors').write_bytes(net.read_bytes())
    again = load_checkpoint(half_checkpoint(run, tmp_path/'again.safetensors'))
    assert again.report.trained_on=='miniff' and open_model(run, 'cpu').origin=='run/model.safetensors'


def test_json_agrees_with_the_table(table, tmp_path):
    def refuse(x): raise ValueError(x)
    d = json.loads(write_json_report(table, tmp_path/'report.json').read_text(), parse_constant=refuse)   # no NaN
    back = pd.DataFrame(d['rows'])[COLUMNS]
    pd.testing.assert_frame_equal(back.astype(table.dtypes), table, check_exact=True)
    assert [r['file'] for r in d['summary']]==table.file.unique().tolist() and d['note']==table.attrs['note'] and len(d['checkpoint']['sha256'])==64
    assert d['settings']['cropping']==dict(size=64, margin=1.3, align=False, detector='mtcnn', landmarks='mesh') and str(tmp_path.parent) not in json.dumps(d)


def test_heat_maps(net):
    m, x = load_checkpoint(net), torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))*2-1
    h = heat_map(m, x)
    assert h.shape==(2, 2, 2) and (h>=0).all() and not m.training and all(p.grad is None for p in m.parameters())
    assert all(v in (0, 1) for v in h.amax((1, 2)).tolist())
    if hasattr(m, 'rsa'): assert torch.equal(heat_map(m, x, 'attention'), m(x).attention_map[:, 0].detach())
    else:
        with pytest.raises(HffError, match='no attention map'): heat_map(m, x, 'attention')


@pytest.mark.parametrize('align', [False, True])
def test_overlay_touches_the_face_only(model, align, tmp_path):
    im = cv2.warpAffine(read_picture(PORTRAITS/'male_65.jpg'), cv2.getRotationMatrix2D((144, 144), 20, .8), (288, 288))
    cv2.imwrite(str(tmp_path/'a.png'), im[..., ::-1])
    t = hff.predict(tmp_path/'a.png', model, align=align)
    out = overlay_picture(im, t, {0: np.ones((2, 2))})
    near = cv2.fillPoly(np.zeros(im.shape[:2], np.uint8), np.round(corners(t.iloc[0])).astype(np.int32)[None], 1)
    label = np.array(min(corners(t.iloc[0]).round().tolist(), key=lambda q: q[::-1])).astype(int)
    grown = cv2.dilate(near, np.ones((7, 7))); grown[max(0, label[1]-30):label[1]+4, label[0]-4:label[0]+60] = 1
    changed = (out!=im).any(2)
    assert changed[near>0].mean()>.9 and not changed[grown==0].any() and (out.shape, out.dtype)==(im.shape, im.dtype)
    assert (abs(t.angle[0])>10)==align
    assert (overlay_picture(im, t)!=im).any(2)[near>0].mean()<.3                       # without a map: lines and label


def test_overlay_video_of_odd_size(model, tmp_path):
    with av.open(str(tmp_path/'odd.avi'), 'w') as out:
        s = out.add_stream('ffv1', rate=8); s.width, s.height, s.pix_fmt = 287, 285, 'bgr0'
        for f in frames(): out.mux(s.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(f[:285, :287, ::-1]), format='bgr24')))
        out.mux(s.encode(None))
    t = hff.predict(tmp_path/'odd.avi', model, frames=6)
    assert t.status.eq('ok').sum()==4
    maps = frame_maps(model, tmp_path/'odd.avi', t)
    assert set(maps)=={(f, 0) for f in t.frame[t.status=='ok']}
    p = overlay_video(tmp_path/'odd.avi', t, tmp_path/'out.mp4', maps)
    got = list(iter_video(p))
    assert len(got)==12 and got[0].shape[0]%2==0 and got[0].shape[:2]==(286+56, 288) and probe_video(p)['fps']==8
    want = frames()
    error = [np.abs(g[:285, :287].astype(int)-w[:285, :287]).mean() for g, w in zip(got, want)]
    assert max(error[9:])<2 and min(error[:8])>2*max(error[9:])


def test_boxes_between_scored_frames():
    row = lambda x, **k: dict(x0=x, y0=0., x1=x+100, y1=100., angle=0., face=0, score=.2, status='ok') | k
    near, (r,) = rows_at(2, {0: [row(0.)], 8: [row(40., score=.9)]}, 8)
    assert (near, r['x0'], r['score'])==(0, 10., .2)
    assert rows_at(2, {0: [row(0.)], 8: [row(400.)]}, 8)[1]==[row(0.)] and rows_at(30, {0: [row(0.)]}, 8)[1]==[]


def test_write_overlays(table, folder, model, tmp_path):
    before = {p: p.read_bytes() for p in folder.rglob('*') if p.is_file() and 'loop' not in p.parts}
    done = write_overlays(table, folder, tmp_path/'out', model).set_index('file')
    assert {p: p.read_bytes() for p in before}==before
    made = {p.relative_to(tmp_path/'out').as_posix() for p in (tmp_path/'out').rglob('*') if p.is_file()}
    assert made=={n for n in [*done.overlay, *done.timeline] if n}
    assert done.loc['clip.mp4'].tolist()==['clip.mp4', 'clip_timeline.png', ''] and done.overlay['gut/männlich 男.png']=='gut/männlich 男.png'
    assert done.reason[['cut.mp4', 'gone.mp4', 'broken.jpg']].tolist()==['cannot decode', 'no file', 'unreadable picture']
    assert read_picture(tmp_path/'out/turned.png').shape==(288, 288, 3) and read_picture(tmp_path/'out/clip_timeline.png').mean()>200
    assert len(list(iter_video(tmp_path/'out/clip.mp4')))==12
    for into in (folder, folder/'loop', folder/'gut/..'):
        with pytest.raises(HffError, match='another folder'): write_overlays(table, folder, into, model)
    with pytest.raises(HffError, match='choose from'): write_overlays(table, folder, tmp_path/'x', model, heat='magic')


def test_overlays_stay_inside(table, folder, tmp_path):
    t = table[table.file=='nobody.jpg'].assign(file='../nobody.jpg')
    assert write_overlays(t, folder, tmp_path/'out').reason.tolist()==['no file'] and not (tmp_path/'nobody.png').exists()
    names = overlay_names(['a.png', 'A.jpg', 'a.mp4', 'a_timeline.png', 'b/a.png', 'noext'])
    assert len({n.casefold() for n in names.values()})==6 and names['b/a.png']=='b/a'


def test_timeline(table):
    ax = plot_timeline(table[table.file=='clip.mp4'].reset_index(drop=True))
    try:
        assert ax.get_ylim()==(0, 1) and ax.get_xlim()==(0, 1.5)
        assert [t.get_text().split()[0] for t in ax.get_legend().get_texts()]==['not', 'pooled']
    finally: __import__('matplotlib.pyplot').pyplot.close(ax.figure)
    with pytest.raises(HffError, match='shows one file'): plot_timeline(table)


def test_detectors_of_two_sizes_where_imghdr_is_gone():
    "Python 3.13 has no `imghdr`, which MTCNN's module imports: a second detector must find faces like the first"
    code = """import importlib.util, sys
real = importlib.util.find_spec                                         # as on 3.13, whatever runs this
importlib.util.find_spec = lambda name, package=None: None if name=='imghdr' and name not in sys.modules else real(name, package)
from hff.clips import read_picture
from hff.faces import detect_faces
im = read_picture(sys.argv[1])
assert not detect_faces(im[:30, :30]) and len(detect_faces(im))==1 and sys.modules['imghdr'].__spec__ is None"""
    r = subprocess.run([sys.executable, '-c', code, PORTRAITS/'male_20.jpg'], env=os.environ | dict(PYTHONPATH=str(PORTRAITS.parents[2])), capture_output=True, text=True)
    assert r.returncode==0, r.stderr
